#include "transport/device/local_edge.h"

#include <utility>

#include "core/error.h"
#include "transport/device/copy_segments.h"

namespace pipert {

LocalEdge::LocalEdge(std::shared_ptr<DeviceSlots> slots) : slots_(std::move(slots)) {
  for (uint32_t slot = 0; slot < slots_->num_slots(); ++slot) {
    free_.emplace_back(cuda::Timing::kOff);
    arrived_.emplace_back(cuda::Timing::kOff);
  }
}

// A plan sends and receives a message in adjacent rows, and offers its slot before both.
void LocalEdge::send(uint32_t slot, const DeviceMessage& message, cuda::StreamView lane, const HostWait& wait) {
  prepare(slot, packed_bytes(message.segments));
  lane.wait(free_[slot].view());
  move(slots_->at(slot).address, message, lane, wait);
  lane.record(arrived_[slot].view());
  if (!message.known) announced_ = announcement_of(message);
}

void LocalEdge::move(cuda::Address slot, const DeviceMessage& message, cuda::StreamView lane, const HostWait&) {
  copy_segments(slot, message.segments, lane);
}

Announcement LocalEdge::announced(const HostWait&) {
  PIPERT_CHECK(announced_.has_value(), "a message is received before it is sent");
  return *std::exchange(announced_, std::nullopt);
}

void LocalEdge::receive(uint32_t slot, std::span<const uint64_t>, cuda::StreamView lane, const HostWait&) {
  lane.wait(arrived_[slot].view());
}

}  // namespace pipert
