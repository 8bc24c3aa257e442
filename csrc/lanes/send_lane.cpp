#include "lanes/send_lane.h"

#include <utility>

#include "core/clock.h"
#include "core/error.h"

namespace pipert {
namespace {

constexpr int64_t kSliceNs = 50'000'000;
// Up to here copying costs the compute thread about what waking another one does. Four ranks on two cores, 200 us of
// work an op, 256 KiB: 14.9 ms a step against 15.4.
constexpr size_t kInlineBytes = 256 << 10;

}  // namespace

SendLane::SendLane(int32_t rank, int32_t peer, std::vector<SendOp> ops, SendEnd& end, Channels& channels,
                   int64_t timeout_ns)
    : rank_(rank), peer_(peer), ops_(std::move(ops)), end_(end), channels_(channels), timeout_ns_(timeout_ns) {
  cursor_.ops_per_step = ops_.size();
  thread_ = BackgroundThread("pipert-send-" + std::to_string(peer), [this] { loop(); });
}

SendLane::~SendLane() {
  thread_.join([this] {
    stop_.store(true);
    nudges_.advance();
  });
}

void SendLane::nudge() {
  {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (lock) {
      while (startable() && end_.ready() && next().num_bytes <= kInlineBytes) run_next();
      if (!startable()) return;
    }
  }
  // Something is left, or the thread is at work and may have looked before the cursor moved. It reads `nudges_` before
  // it looks, so it does not sleep without having seen what we saw.
  nudges_.advance();
}

void SendLane::loop() {
  while (!stop_.load()) {
    const uint64_t seen = nudges_.value();
    {
      const std::lock_guard lock(mutex_);
      while (startable() && await_place()) run_next();
    }
    while (!nudges_.sleep(seen + 1, 20 * kSliceNs)) {
    }
  }
}

// Whether the next op's dependencies hold.
bool SendLane::startable() const noexcept {
  if (channels_.failure().raised()) return false;
  const uint64_t next = cursor_.finished.value();
  return all_hold(ops_[next % ops_.size()].dependencies, next / ops_.size());
}

// Waits until the receiver has posted a place. False: the work is over, or (and then it is) the receiver did not come.
bool SendLane::await_place() {
  if (end_.ready()) return true;
  waiting_op_.store(next().op, std::memory_order_relaxed);
  next().record->ready_ns = now_ns();
  const int64_t deadline_ns = now_ns() + timeout_ns_;
  bool ready = false;
  while (!ready) {
    const bool left = channels_.left(peer_);  // before the last look at the event
    ready = end_.event().sleep(end_.event_target(), kSliceNs);
    if (ready) break;
    if (stop_.load() || channels_.failure().raised()) break;
    if (left) {
      fail(FailureKind::kPeerLost, peer_, "rank " + std::to_string(peer_) + " left before it received " + next().text);
      break;
    }
    if (now_ns() > deadline_ns) {
      fail(FailureKind::kTimeout, rank_,
           "rank " + std::to_string(peer_) + " offered no place for " + next().text + " of rank " +
               std::to_string(rank_) + " within " + std::to_string(timeout_ns_ / 1'000'000) + " ms");
      break;
    }
  }
  waiting_op_.store(-1, std::memory_order_relaxed);
  return ready;
}

void SendLane::run_next() {
  SendOp& op = next();
  const uint64_t step = cursor_.finished.value() / ops_.size();
  if (op.posted_steps != step + 1) {
    fail(FailureKind::kAborted, rank_,
         "the handler before " + op.text + " of rank " + std::to_string(rank_) + " posted nothing to send");
    return;
  }
  try {
    const NvtxRange range(op.nvtx, op.num_bytes);
    const CopyTimes times = end_.send(op.segments, op.header);
    op.record->start_ns = times.start_ns;
    op.record->end_ns = times.end_ns;
    if (op.record->ready_ns == 0) op.record->ready_ns = times.start_ns;
  } catch (const Error& error) {
    fail(FailureKind::kTransport, rank_,
         "rank " + std::to_string(rank_) + " failed at " + op.text + ": " + error.what());
    return;
  }
  cursor_.finished.advance();
  for (RecvLane* lane : op.frees) lane->offer();
}

void SendLane::fail(FailureKind kind, int32_t culprit, const std::string& text) {
  channels_.fail({.kind = kind, .rank = culprit, .op = next().text, .text = text});
}

}  // namespace pipert
