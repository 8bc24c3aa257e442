// The two ends of a directed edge. Messages have a number and arrive in order; each is copied once, by the sender,
// into a slot of the receiver.
//
//   receiver                       sender
//   post(slot)  ── posted ──▶      waits until a place is posted, copies header and data
//   waits       ◀── done ───       send(...)
//   take()
//
// Each end is used by one thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/clock.h"
#include "transport/edge_memory.h"

namespace pipert {

struct Segment {
  const void* data = nullptr;
  size_t num_bytes = 0;
};

// Segments lie one after another in a slot, each start rounded up to this.
inline constexpr size_t kSegmentAlignment = 64;

constexpr size_t segment_start(size_t end_of_last) noexcept {
  return (end_of_last + kSegmentAlignment - 1) / kSegmentAlignment * kSegmentAlignment;
}

// What the segments take up in a slot.
size_t packed_bytes(std::span<const Segment> segments) noexcept;

struct CopyTimes {
  int64_t start_ns = 0;
  int64_t end_ns = 0;
};

class SendEnd {
 public:
  explicit SendEnd(std::shared_ptr<EdgeMemory> memory);

  // Whether the receiver has posted a place for the next message; the event to wait for.
  bool ready() const noexcept { return memory_->control().posted.reached(sent_ + 1); }
  Counter& event() const noexcept { return memory_->control().posted; }
  uint64_t event_target() const noexcept { return sent_ + 1; }
  uint32_t num_slots() const noexcept { return memory_->num_slots(); }
  const std::shared_ptr<EdgeMemory>& memory() const noexcept { return memory_; }

  // Copies the next message, which must be ready(). Throws TransportError: larger than a slot, out of memory.
  CopyTimes send(std::span<const Segment> segments, std::span<const std::byte> header);

 private:
  std::shared_ptr<EdgeMemory> memory_;
  std::vector<size_t> populated_;  // per slot: bytes that this end has touched
  uint64_t sent_ = 0;
};

struct Arrival {
  uint32_t slot = 0;
  uint64_t num_bytes = 0;
  std::span<const std::byte> header;  // until the next post()
  CopyTimes times;
};

// How much slower than this machine's memory a link is made to be.
struct LinkDelay {
  int64_t latency_ns = 0;    // between the end of a message's copy and its arrival
  int64_t occupancy_ns = 0;  // before that, for which no other message of the edge is on its way
};

class RecvEnd {
 public:
  explicit RecvEnd(std::shared_ptr<EdgeMemory> memory);

  // Holds messages back from now on. Before the first is sent.
  void delay(LinkDelay delay) noexcept;

  // Whether the ring has room for one more post.
  bool can_post() const noexcept { return posted_ - taken_ < memory_->ring_entries(); }
  // Offers a slot that is free for the next message that has no place yet.
  void post(uint32_t slot) noexcept;

  // Whether the next message is there; the event to wait for, after which it may have to be held back until due_ns().
  bool arrived() const noexcept {
    return memory_->control().done.reached(taken_ + 1) && (!delayed_ || due_ns() <= now_ns());
  }
  int64_t due_ns() const noexcept { return link_free_ns() + delay_.latency_ns; }
  Counter& event() const noexcept { return memory_->control().done; }
  uint64_t event_target() const noexcept { return taken_ + 1; }

  // The next message, which must have arrived. Throws TransportError when the sender wrote nonsense.
  Arrival take();

  const std::shared_ptr<EdgeMemory>& memory() const noexcept { return memory_; }
  // How much of a slot has been used by some message, and can be looked at.
  size_t capacity(uint32_t slot) const noexcept { return capacity_[slot]; }

 private:
  // When the next message, which has been copied, leaves the link to others.
  int64_t link_free_ns() const noexcept;

  std::shared_ptr<EdgeMemory> memory_;
  std::vector<uint32_t> slot_of_message_;  // per ring entry; the entry itself is in the sender's reach
  std::vector<size_t> capacity_;
  uint64_t posted_ = 0;
  uint64_t taken_ = 0;
  LinkDelay delay_;
  bool delayed_ = false;
  int64_t free_ns_ = 0;  // when the last message that was taken left the link to others
};

}  // namespace pipert
