// An edge between two processes of one machine (or two ranks of one): the sender's lane copies straight into the
// receiver's device memory, and the two devices tell each other by words that the streams write and wait for.
//
//   receiver's offers   write posted = 1
//   sender's lane       wait posted == 1, write posted = 0, copy, write arrived = 1
//   receiver's lane     wait arrived == 1, write arrived = 0
//
// The words are set and taken back, never counted, so a captured step can be launched again and again. They lie in
// page-locked host memory that both processes share: if the peer dies, the host can end a wait by writing them, however
// the device's queues stand.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "device/cuda/memory.h"
#include "transport/device/announcer.h"
#include "transport/device/device_end.h"
#include "transport/device/device_slots.h"
#include "transport/edge_memory.h"

namespace pipert {

// One slot, as the sender sees it. All zeros is its start.
struct alignas(128) IpcSlot {
  uint32_t posted;
  uint32_t arrived;
  // Where the slot is. The receiver writes it before `capacity`, and only while the sender waits for that.
  std::atomic<uint64_t> capacity;
  int64_t process;          // of the receiver
  uint64_t address;         // there
  uint64_t offset;          // of the slot in its allocation
  cuda::IpcMemHandle base;  // that allocation
};

// What both ends of an edge in this process share: the slots' descriptions, in the edge's memory.
class IpcSlots {
 public:
  IpcSlots(std::shared_ptr<EdgeMemory> memory, uint32_t num_slots);

  uint32_t num_slots() const noexcept { return num_slots_; }
  IpcSlot& at(uint32_t slot) const noexcept { return reinterpret_cast<IpcSlot*>(memory_->slot(0))[slot]; }
  cuda::Address posted(uint32_t slot) const noexcept { return registered_.address_of(&at(slot).posted); }
  cuda::Address arrived(uint32_t slot) const noexcept { return registered_.address_of(&at(slot).arrived); }
  void clear() const noexcept;
  // Ends every wait, of both devices.
  void release() const noexcept;

 private:
  std::shared_ptr<EdgeMemory> memory_;
  uint32_t num_slots_;
  cuda::RegisteredMemory registered_;
};

// The allocations of other processes that are mapped here, each once.
class PeerMappings {
 public:
  cuda::Address base(const cuda::IpcMemHandle& handle);

 private:
  std::map<std::string, cuda::PeerMemory> mapped_;
};

class IpcRecvEnd final : public DeviceRecvEnd {
 public:
  IpcRecvEnd(std::shared_ptr<IpcSlots> slots, RecvEnd& end, std::shared_ptr<DeviceSlots> memory);
  void offer(uint32_t slot, cuda::StreamView offers) override { offers.write(slots_->posted(slot), 1); }
  Announcement announced(const HostWait& wait) override { return announcements_.take(wait); }
  void prepare(uint32_t slot, size_t num_bytes) override;
  void receive(uint32_t slot, std::span<const uint64_t> segment_bytes, cuda::StreamView lane,
               const HostWait& wait) override;
  void release() noexcept override { slots_->release(); }

 private:
  std::shared_ptr<IpcSlots> slots_;
  AnnouncementReceiver announcements_;
  std::shared_ptr<DeviceSlots> memory_;
};

class IpcSendEnd final : public DeviceSendEnd {
 public:
  // `receiver`: the other end, if it is in this process.
  IpcSendEnd(std::shared_ptr<IpcSlots> slots, SendEnd& end, std::shared_ptr<PeerMappings> mappings,
             std::shared_ptr<DeviceRecvEnd> receiver);
  void send(uint32_t slot, const DeviceMessage& message, cuda::StreamView lane, const HostWait& wait) override;
  void release() noexcept override { slots_->release(); }

 private:
  cuda::Address place(uint32_t slot, size_t num_bytes, const HostWait& wait);

  std::shared_ptr<IpcSlots> slots_;
  AnnouncementSender announcements_;
  std::shared_ptr<PeerMappings> mappings_;
  std::shared_ptr<DeviceRecvEnd> receiver_;
  std::vector<DeviceSlot> places_;  // per slot, as mapped here
};

}  // namespace pipert
