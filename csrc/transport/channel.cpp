#include "transport/channel.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "core/clock.h"
#include "core/error.h"
#include "device/host/copy.h"

namespace pipert {
namespace {

// Growth in few steps: whole small pages for small messages, huge pages for large ones.
size_t growth(size_t bytes, size_t limit) noexcept {
  const size_t step = bytes < (size_t{1} << 20) ? size_t{4} << 10 : size_t{2} << 20;
  return std::min(limit, (bytes + step - 1) / step * step);
}

}  // namespace

size_t packed_bytes(std::span<const Segment> segments) noexcept {
  size_t end = 0;
  for (const Segment& segment : segments) end = segment_start(end) + segment.num_bytes;
  return end;
}

SendEnd::SendEnd(std::shared_ptr<EdgeMemory> memory)
    : memory_(std::move(memory)), populated_(memory_->num_slots(), 0) {}

CopyTimes SendEnd::send(std::span<const Segment> segments, std::span<const std::byte> header) {
  RingEntry& entry = memory_->entry(sent_);
  const uint32_t slot = entry.slot;
  const size_t num_bytes = packed_bytes(segments);
  if (slot >= memory_->num_slots()) throw TransportError("the receiver posted a slot that the plan does not have");
  if (num_bytes > memory_->slot_bytes()) {
    throw TransportError("a message of " + std::to_string(num_bytes) + " bytes is larger than a slot can get (" +
                         std::to_string(memory_->slot_bytes()) + ")");
  }
  PIPERT_CHECK(header.size() <= kMaxHeaderBytes, "header too large");

  CopyTimes times{.start_ns = now_ns()};
  if (num_bytes > populated_[slot]) {
    const size_t bytes = growth(num_bytes, memory_->slot_bytes());
    memory_->populate(slot, bytes);
    populated_[slot] = bytes;
  }
  std::byte* const place = memory_->slot(slot);
  size_t end = 0;
  for (const Segment& segment : segments) {
    end = segment_start(end);
    copy_message(place + end, segment.data, segment.num_bytes);
    end += segment.num_bytes;
  }
  if (!header.empty()) std::memcpy(entry.header, header.data(), header.size());
  times.end_ns = now_ns();
  entry.header_bytes = static_cast<uint32_t>(header.size());
  entry.num_bytes = num_bytes;
  entry.start_ns = times.start_ns;
  entry.end_ns = times.end_ns;
  ++sent_;
  memory_->control().done.advance();
  return times;
}

RecvEnd::RecvEnd(std::shared_ptr<EdgeMemory> memory)
    : memory_(std::move(memory)), slot_of_message_(memory_->ring_entries(), 0), capacity_(memory_->num_slots(), 0) {}

void RecvEnd::delay(LinkDelay delay) noexcept {
  delay_ = delay;
  delayed_ = delay.latency_ns > 0 || delay.occupancy_ns > 0;
}

int64_t RecvEnd::link_free_ns() const noexcept {
  return std::max(memory_->entry(taken_).end_ns, free_ns_) + delay_.occupancy_ns;
}

void RecvEnd::post(uint32_t slot) noexcept {
  slot_of_message_[posted_ & (memory_->ring_entries() - 1)] = slot;
  memory_->entry(posted_).slot = slot;
  ++posted_;
  memory_->control().posted.advance();
}

Arrival RecvEnd::take() {
  const RingEntry& entry = memory_->entry(taken_);
  const uint32_t slot = slot_of_message_[taken_ & (memory_->ring_entries() - 1)];
  const uint64_t num_bytes = entry.num_bytes;
  const uint32_t header_bytes = entry.header_bytes;
  if (num_bytes > memory_->slot_bytes() || header_bytes > kMaxHeaderBytes) {
    throw TransportError("the sender announced a message of " + std::to_string(num_bytes) + " bytes with a header of " +
                         std::to_string(header_bytes) + ", which no slot can hold");
  }
  if (num_bytes > capacity_[slot]) {
    const size_t bytes = growth(num_bytes, memory_->slot_bytes());
    memory_->populate(slot, bytes);
    capacity_[slot] = bytes;
  }
  const CopyTimes times{.start_ns = entry.start_ns, .end_ns = delayed_ ? due_ns() : entry.end_ns};
  if (delayed_) free_ns_ = link_free_ns();
  ++taken_;
  return {.slot = slot, .num_bytes = num_bytes, .header = {entry.header, header_bytes}, .times = times};
}

}  // namespace pipert
