// An edge over NCCL, with a communicator of its own. A receive is posted in its place on the lane, once its slot is
// free: that is the rendezvous, so nothing is offered ahead.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "transport/device/announcer.h"
#include "transport/device/device_end.h"
#include "transport/device/device_slots.h"
#include "transport/device/local_edge.h"
#include "transport/nccl/nccl_communicator.h"

namespace pipert {

class NcclSendEnd final : public DeviceSendEnd {
 public:
  NcclSendEnd(NcclCommunicator communicator, SendEnd& end, int64_t timeout_ns);
  void send(uint32_t slot, const DeviceMessage& message, cuda::StreamView lane, const HostWait& wait) override;
  void release() noexcept override { communicator_.abort(); }
  std::optional<std::string> fault() noexcept override { return communicator_.poll(); }

 private:
  NcclCommunicator communicator_;
  AnnouncementSender announcements_;
  int64_t timeout_ns_;
};

class NcclRecvEnd final : public DeviceRecvEnd {
 public:
  NcclRecvEnd(NcclCommunicator communicator, RecvEnd& end, std::shared_ptr<DeviceSlots> slots, int64_t timeout_ns);
  bool offers() const noexcept override { return false; }
  void offer(uint32_t, cuda::StreamView) override {}
  Announcement announced(const HostWait& wait) override { return announcements_.take(wait); }
  void prepare(uint32_t slot, size_t num_bytes) override { slots_->ensure(slot, num_bytes); }
  void receive(uint32_t slot, std::span<const uint64_t> segment_bytes, cuda::StreamView lane,
               const HostWait& wait) override;
  void release() noexcept override { communicator_.abort(); }
  std::optional<std::string> fault() noexcept override { return communicator_.poll(); }

 private:
  NcclCommunicator communicator_;
  AnnouncementReceiver announcements_;
  std::shared_ptr<DeviceSlots> slots_;
  int64_t timeout_ns_;
};

// Both ends in this process: NCCL sends to itself.
class NcclSelfEdge final : public LocalEdge {
 public:
  NcclSelfEdge(NcclCommunicator communicator, std::shared_ptr<DeviceSlots> slots, int64_t timeout_ns);
  void release() noexcept override { communicator_.abort(); }
  std::optional<std::string> fault() noexcept override { return communicator_.poll(); }

 private:
  void move(cuda::Address slot, const DeviceMessage& message, cuda::StreamView lane, const HostWait& wait) override;

  NcclCommunicator communicator_;
  int64_t timeout_ns_;
};

}  // namespace pipert
