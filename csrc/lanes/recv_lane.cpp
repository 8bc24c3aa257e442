#include "lanes/recv_lane.h"

#include <algorithm>
#include <utility>

#include "core/clock.h"

namespace pipert {

RecvLane::RecvLane(int32_t rank, int32_t peer, std::vector<RecvOp> ops, RecvEnd& end)
    : rank_(rank), peer_(peer), ops_(std::move(ops)), end_(end), messages_(ops_.size()) {
  cursor_.ops_per_step = ops_.size();
}

void RecvLane::begin_step(uint64_t step) {
  const std::lock_guard lock(mutex_);
  steps_ = step + 1;
  offer_locked();
}

void RecvLane::offer() {
  const std::lock_guard lock(mutex_);
  offer_locked();
}

void RecvLane::offer_locked() {
  for (;;) {
    const uint64_t next = offered_.load(std::memory_order_relaxed);
    if (next >= steps_ * ops_.size() || !end_.can_post()) return;
    const RecvOp& op = ops_[next % ops_.size()];
    if (!all_hold(op.dependencies, next / ops_.size())) return;
    op.record->ready_ns = now_ns();
    offered_.store(next + 1, std::memory_order_relaxed);
    end_.post(op.slot);
  }
}

bool RecvLane::taken(uint64_t target) {
  if (cursor_.finished.reached(target)) return true;
  if (!end_.arrived()) return false;
  const std::lock_guard lock(mutex_);
  while (!cursor_.finished.reached(target) && end_.arrived()) {
    const uint64_t position = cursor_.finished.value() % ops_.size();
    const Arrival arrival = end_.take();
    nvtx_mark(ops_[position].nvtx, arrival.num_bytes);
    Message& message = messages_[position];
    message.header.assign(arrival.header.begin(), arrival.header.end());
    message.slot = arrival.slot;
    message.num_bytes = arrival.num_bytes;
    TraceRecord& record = *ops_[position].record;
    record.start_ns = arrival.times.start_ns;
    record.end_ns = arrival.times.end_ns;
    cursor_.finished.advance();
  }
  offer_locked();  // the ring may have been full
  return cursor_.finished.reached(target);
}

bool RecvLane::sleep_until_due(int64_t timeout_ns) noexcept {
  if (end_.arrived()) return true;
  const int64_t left_ns = end_.due_ns() - now_ns();
  const int64_t sleep_ns = std::clamp<int64_t>(left_ns, 0, timeout_ns);
  const timespec time{.tv_sec = sleep_ns / 1'000'000'000, .tv_nsec = sleep_ns % 1'000'000'000};
  clock_nanosleep(CLOCK_MONOTONIC, 0, &time, nullptr);
  return left_ns <= timeout_ns;
}

}  // namespace pipert
