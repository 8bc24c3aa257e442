// The receiving end of an edge on the host. It needs no thread: a slot is offered to the sender by whoever finishes the
// op that freed it, and an arrival is seen by the compute op that waits for it.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <utility>
#include <vector>

#include "lanes/cursor.h"
#include "trace/nvtx.h"
#include "trace/record.h"
#include "transport/channel.h"

namespace pipert {

// What a RECV of the step received.
struct Message {
  std::vector<std::byte> header;
  uint32_t slot = 0;  // its number on the edge
  uint64_t num_bytes = 0;
};

struct RecvOp {
  int32_t op = -1;
  uint32_t slot = 0;                     // its number on the edge
  std::vector<Dependency> dependencies;  // what must be finished before its slot is free
  TraceRecord* record = nullptr;
  NvtxOp nvtx = {};
};

class RecvLane {
 public:
  RecvLane(int32_t rank, int32_t peer, std::vector<RecvOp> ops, RecvEnd& end);

  int32_t rank() const noexcept { return rank_; }
  int32_t peer() const noexcept { return peer_; }
  const Cursor& cursor() const noexcept { return cursor_; }
  const std::vector<RecvOp>& ops() const noexcept { return ops_; }
  const RecvEnd& end() const noexcept { return end_; }

  // Before the first step.
  void set_dependencies(uint64_t position, std::vector<Dependency> dependencies) {
    ops_[position].dependencies = std::move(dependencies);
  }

  // From any thread: lets the RECVs of step `step` be offered. They are as soon as their dependencies hold.
  void begin_step(uint64_t step);
  // From any thread, after an op that a RECV here depends on has finished: offers every slot that is free now. The
  // finisher moves its cursor before it takes the mutex, so whoever takes it last sees all that has finished.
  void offer();

  // From the compute thread only: takes what has arrived; says whether the first `target` messages have.
  bool taken(uint64_t target);
  // From the compute thread only: what to wait for until the next message arrives.
  Counter& event() noexcept { return end_.event(); }
  uint64_t event_target() const noexcept { return end_.event_target(); }
  // From the compute thread only, after the event: sleeps while the message is held back, for at most `timeout_ns`;
  // says whether it no longer is.
  bool sleep_until_due(int64_t timeout_ns) noexcept;

  const Message& message(uint64_t position) const noexcept { return messages_[position]; }
  uint64_t offered() const noexcept { return offered_.load(std::memory_order_relaxed); }

 private:
  void offer_locked();

  int32_t rank_;
  int32_t peer_;
  std::vector<RecvOp> ops_;
  RecvEnd& end_;
  std::vector<Message> messages_;  // per op of a step
  Cursor cursor_;                  // taken messages
  std::mutex mutex_;
  uint64_t steps_ = 0;  // steps that have begun; guarded by mutex_
  std::atomic<uint64_t> offered_{0};
};

}  // namespace pipert
