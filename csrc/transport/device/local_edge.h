// An edge between two ranks of this process: the sender's lane copies into the slot.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "transport/device/device_end.h"
#include "transport/device/device_slots.h"

namespace pipert {

class LocalEdge : public DeviceSendEnd, public DeviceRecvEnd {
 public:
  explicit LocalEdge(std::shared_ptr<DeviceSlots> slots);

  void send(uint32_t slot, const DeviceMessage& message, cuda::StreamView lane, const HostWait& wait) override;
  void offer(uint32_t slot, cuda::StreamView offers) override { offers.record(free_[slot].view()); }
  Announcement announced(const HostWait& wait) override;
  void prepare(uint32_t slot, size_t num_bytes) override { slots_->ensure(slot, num_bytes); }
  void receive(uint32_t slot, std::span<const uint64_t> segment_bytes, cuda::StreamView lane,
               const HostWait& wait) override;
  void release() noexcept override {}  // nobody waits for another process
  std::optional<std::string> fault() noexcept override { return std::nullopt; }

 protected:
  // Enqueues the bytes of a message on their way into the slot that begins at `slot`.
  virtual void move(cuda::Address slot, const DeviceMessage& message, cuda::StreamView lane, const HostWait& wait);

 private:
  std::shared_ptr<DeviceSlots> slots_;
  std::vector<cuda::Event> free_;     // per slot: it may be written
  std::vector<cuda::Event> arrived_;  // per slot: it has been
  std::optional<Announcement> announced_;
};

}  // namespace pipert
