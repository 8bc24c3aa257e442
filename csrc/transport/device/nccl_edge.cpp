#include "transport/device/nccl_edge.h"

#include <utility>
#include <vector>

#include "core/clock.h"
#include "core/error.h"
#include "transport/device/copy_segments.h"

namespace pipert {
namespace {

std::vector<NcclBuffer> buffers_of(std::span<const Segment> segments) {
  std::vector<NcclBuffer> buffers;
  for (const Segment& segment : segments) {
    buffers.push_back({.data = const_cast<void*>(segment.data), .num_bytes = segment.num_bytes});
  }
  return buffers;
}

std::vector<NcclBuffer> buffers_in(cuda::Address slot, std::span<const uint64_t> segment_bytes) {
  std::vector<NcclBuffer> buffers;
  size_t end = 0;
  for (const uint64_t num_bytes : segment_bytes) {
    end = segment_start(end);
    buffers.push_back({.data = reinterpret_cast<void*>(slot + end), .num_bytes = num_bytes});
    end += num_bytes;
  }
  return buffers;
}

// NCCL looks after its own work; this asks the wait in between whether there is still a point to it.
Interrupt interrupt_by(const HostWait& wait) {
  return [&wait] {
    bool looked = false;
    wait([&looked](int64_t) { return std::exchange(looked, true); });
  };
}

}  // namespace

NcclSendEnd::NcclSendEnd(NcclCommunicator communicator, SendEnd& end, int64_t timeout_ns)
    : communicator_(std::move(communicator)), announcements_(end), timeout_ns_(timeout_ns) {}

void NcclSendEnd::send(uint32_t, const DeviceMessage& message, cuda::StreamView lane, const HostWait& wait) {
  if (!message.known) announcements_.send(message, wait);
  communicator_.send(buffers_of(message.segments), lane.get(), now_ns() + timeout_ns_, interrupt_by(wait));
}

NcclRecvEnd::NcclRecvEnd(NcclCommunicator communicator, RecvEnd& end, std::shared_ptr<DeviceSlots> slots,
                         int64_t timeout_ns)
    : communicator_(std::move(communicator)), announcements_(end), slots_(std::move(slots)), timeout_ns_(timeout_ns) {}

void NcclRecvEnd::receive(uint32_t slot, std::span<const uint64_t> segment_bytes, cuda::StreamView lane,
                          const HostWait& wait) {
  communicator_.recv(buffers_in(slots_->at(slot).address, segment_bytes), lane.get(), now_ns() + timeout_ns_,
                     interrupt_by(wait));
}

NcclSelfEdge::NcclSelfEdge(NcclCommunicator communicator, std::shared_ptr<DeviceSlots> slots, int64_t timeout_ns)
    : LocalEdge(std::move(slots)), communicator_(std::move(communicator)), timeout_ns_(timeout_ns) {}

void NcclSelfEdge::move(cuda::Address slot, const DeviceMessage& message, cuda::StreamView lane, const HostWait& wait) {
  communicator_.send_to_self(buffers_of(message.segments), buffers_in(slot, announcement_of(message).segment_bytes),
                             lane.get(), now_ns() + timeout_ns_, interrupt_by(wait));
}

}  // namespace pipert
