#include "executor/executor.h"

#include <algorithm>
#include <utility>

#include "core/clock.h"
#include "core/error.h"
#include "executor/paused.h"

namespace pipert {
namespace {

constexpr int64_t kSliceNs = 50'000'000;

// Throws ConfigError unless there is a delay for each lane, or none at all.
void check_delays(std::span<const LinkDelay> delays, size_t num_lanes) {
  if (!delays.empty() && delays.size() != num_lanes) {
    throw ConfigError("there are delays for " + std::to_string(delays.size()) + " lanes, the plan has " +
                      std::to_string(num_lanes));
  }
  for (const LinkDelay& delay : delays) {
    if (delay.latency_ns < 0 || delay.occupancy_ns < 0) throw ConfigError("a link's delay must not be negative");
  }
}

}  // namespace

Executor::Executor(std::shared_ptr<const Plan> plan, std::shared_ptr<Channels> channels, std::vector<int32_t> ranks,
                   ExecutorOptions options)
    : plan_(std::move(plan)), channels_(std::move(channels)), options_(options) {
  if (channels_->topology().fingerprint != plan_->fingerprint) {
    throw ConfigError("the channels were made for another plan");
  }
  if (options_.spin_ns < 0 || options_.timeout_ns <= 0) {
    throw ConfigError("the spin time must not be negative, the timeout must be positive");
  }
  check_delays(options_.delays, plan_->lanes.size());
  channels_->check_serves(std::move(ranks));
  if (!channels_->claim()) throw ConfigError("another executor uses these channels, or they are closed or have failed");
  try {
    wiring_ = wire(*plan_, *channels_, options_.timeout_ns, options_.delays);
    send_counts_.assign(wiring_.send_lanes.size(), 0);
  } catch (...) {
    channels_->release();
    throw;
  }
}

Executor::~Executor() {
  wiring_.send_lanes.clear();  // joins their threads
  channels_->release();
}

void Executor::restart_counts() {
  for (size_t index = 0; index < wiring_.send_lanes.size(); ++index) {
    send_counts_[index] = wiring_.send_lanes[index]->cursor().finished.value();
  }
}

void Executor::step(int64_t step, ComputeHost& host) {
  if (running_.exchange(true)) throw Error("step was called while a step runs", {.step = step});
  progress_.step = step;
  try {
    run_step(host);
  } catch (...) {
    if (!channels_->failure().raised()) {  // what the host threw; our own failures raise the flag first
      const int32_t op = progress_.current.load(std::memory_order_relaxed);
      const std::string where = op < 0 ? "" : " at " + text(op);
      const int32_t rank = op < 0 ? channels_->rank() : plan_->rank_of(op);
      fail(FailureKind::kAborted, rank,
           "rank " + std::to_string(rank) + " failed" + where + ": " + host.what_was_thrown());
    }
    quiesce();
    failed_ = true;
    progress_.clear();
    running_.store(false);
    throw;
  }
  progress_.current.store(-1, std::memory_order_relaxed);
  running_.store(false);
}

void Executor::run_step(ComputeHost& host) {
  const FailureFlag& failure = channels_->failure();
  if (failed_) throw Error("no step can follow a failure: " + failure.failure().text, {.step = progress_.step});
  const uint64_t step = steps_;
  steps_ = step + 1;
  for (const std::unique_ptr<RecvLane>& lane : wiring_.recv_lanes) lane->begin_step(step);
  for (size_t index = 0; index < wiring_.program.size(); ++index) {
    ComputeOp& op = wiring_.program[index];
    progress_.current.store(op.op, std::memory_order_relaxed);
    if (failure.raised()) throw_failure();
    op.record->ready_ns = now_ns();
    op.record->start_ns = op.record->ready_ns;
    for (const auto& [lane, position] : op.reads) {
      if (lane->taken(lane->cursor().target(step, position))) continue;
      wait_for_message(*lane, position, op.op, host);
      op.record->start_ns = now_ns();
    }
    {
      const NvtxRange range(op.nvtx, 0);
      host.run(index);
    }
    op.record->end_ns = now_ns();
    op.cursor->finished.advance();
    for (RecvLane* lane : op.frees) lane->offer();
    for (SendLane* lane : op.feeds) lane->nudge();
  }
  for (const std::unique_ptr<SendLane>& lane : wiring_.send_lanes) wait_for_sends(*lane, host);
  for (const std::unique_ptr<RecvLane>& lane : wiring_.recv_lanes) {
    if (!lane->taken(lane->cursor().target(step, lane->ops().size() - 1))) {
      wait_for_message(*lane, lane->ops().size() - 1, -1, host);
    }
  }
}

// A receive is on its rank's way, so the deadline counts from when it is needed.
void Executor::wait_for_message(RecvLane& lane, uint64_t position, int32_t waiting_op, ComputeHost& host) {
  const int32_t awaited = lane.ops()[position].op;
  progress_.awaited.store(awaited, std::memory_order_relaxed);
  Paused paused(host);
  const uint64_t target = lane.cursor().target(steps_ - 1, position);
  const int64_t begin_ns = now_ns();
  lane.event().spin(lane.event_target(), options_.spin_ns);
  while (!lane.taken(target)) {
    const bool left = channels_->left(lane.peer());  // before the last look at the event
    if (lane.event().sleep(lane.event_target(), kSliceNs) && lane.sleep_until_due(kSliceNs)) continue;
    if (channels_->failure().raised()) throw_failure();
    if (left) {
      fail(FailureKind::kPeerLost, lane.peer(),
           "rank " + std::to_string(lane.peer()) + " left before it sent what " + text(awaited) + " waits for");
      throw_failure();
    }
    if (now_ns() - begin_ns > options_.timeout_ns) {
      fail(FailureKind::kTimeout, lane.rank(),
           "rank " + std::to_string(lane.rank()) + " waited " + std::to_string(options_.timeout_ns / 1'000'000) +
               " ms for " + text(awaited) + (waiting_op < 0 ? "" : ", which " + text(waiting_op) + " reads"));
      throw_failure();
    }
    paused.check_signals();
  }
  progress_.awaited.store(-1, std::memory_order_relaxed);
}

// The lane's own thread watches the deadline and the peer.
void Executor::wait_for_sends(SendLane& lane, ComputeHost& host) {
  Cursor& cursor = lane.cursor();
  const uint64_t target = cursor.target(steps_ - 1, lane.ops().size() - 1);
  if (cursor.finished.reached(target)) return;
  Paused paused(host);
  while (!cursor.finished.reached(target)) {
    progress_.awaited.store(lane.ops()[cursor.finished.value() % lane.ops().size()].op, std::memory_order_relaxed);
    if (cursor.finished.sleep(target, kSliceNs)) break;
    if (channels_->failure().raised()) throw_failure();
    paused.check_signals();
  }
  progress_.awaited.store(-1, std::memory_order_relaxed);
}

void Executor::fail(FailureKind kind, int32_t culprit, const std::string& failure_text) {
  const int32_t op = progress_.op();
  channels_->fail({.kind = kind, .rank = culprit, .op = op < 0 ? "" : text(op), .text = failure_text});
}

void Executor::quiesce() {
  for (const std::unique_ptr<SendLane>& lane : wiring_.send_lanes) lane->quiesce();
}

uint64_t Executor::post(int32_t send_op, std::span<const Segment> segments, std::span<const std::byte> header) {
  if (send_op < 0 || send_op >= plan_->num_ops()) {
    throw ConfigError("op " + std::to_string(send_op) + " does not exist");
  }
  const ErrorContext context{.rank = plan_->rank_of(send_op), .op = text(send_op), .step = progress_.step};
  const Place place = wiring_.places[send_op];
  if (lane_of(plan_->ops[send_op].kind) != LaneKind::SEND || place.lane < 0) {
    throw ConfigError(context.op + " is not a SEND of this process", context);
  }
  const int32_t current = progress_.current.load(std::memory_order_relaxed);
  const std::span<const int32_t> dependencies = plan_->deps_of(send_op);
  if (std::find(dependencies.begin(), dependencies.end(), current) == dependencies.end()) {
    throw ConfigError(context.op + " is posted by " + (current < 0 ? "nobody: no op is running" : text(current)) +
                          ", but follows " + text(dependencies.back()),
                      context);
  }
  if (header.size() > kMaxHeaderBytes) {
    throw ConfigError("the header of " + context.op + " has " + std::to_string(header.size()) + " bytes, more than " +
                          std::to_string(kMaxHeaderBytes),
                      context);
  }
  for (const Segment& segment : segments) {
    if (segment.data == nullptr && segment.num_bytes > 0) {
      throw ConfigError(context.op + " is to send " + std::to_string(segment.num_bytes) + " bytes from address 0",
                        context);
    }
  }
  SendLane& lane = *wiring_.send_lanes[place.lane];
  SendOp& op = lane.ops()[place.position];
  if (op.posted_steps == steps_) throw ConfigError(context.op + " was posted twice in one step", context);
  op.segments.assign(segments.begin(), segments.end());
  op.header.assign(header.begin(), header.end());
  op.num_bytes = packed_bytes(segments);
  op.posted_steps = steps_;
  op.record->ready_ns = 0;
  return lane.cursor().finished.value() - send_counts_[place.lane];
}

Received Executor::received(int32_t recv_op) const {
  const SlotView view = slot(recv_op);
  const Place place = wiring_.places[recv_op];
  const RecvLane& lane = *wiring_.recv_lanes[place.lane];
  if (steps_ == 0 || !lane.cursor().finished.reached(lane.cursor().target(steps_ - 1, place.position))) {
    throw ConfigError(text(recv_op) + " has not received anything in this step yet",
                      {.rank = lane.rank(), .op = text(recv_op), .step = progress_.step});
  }
  const Message& message = lane.message(place.position);
  return {.header = message.header, .data = view.data, .num_bytes = message.num_bytes};
}

SlotView Executor::slot(int32_t recv_op) const {
  if (recv_op < 0 || recv_op >= plan_->num_ops()) {
    throw ConfigError("op " + std::to_string(recv_op) + " does not exist");
  }
  const Place place = wiring_.places[recv_op];
  if (lane_of(plan_->ops[recv_op].kind) != LaneKind::RECV || place.lane < 0) {
    throw ConfigError(text(recv_op) + " is not a RECV of this process",
                      {.rank = plan_->rank_of(recv_op), .op = text(recv_op)});
  }
  const RecvLane& lane = *wiring_.recv_lanes[place.lane];
  const uint32_t slot = lane.ops()[place.position].slot;
  return {
      .memory = lane.end().memory(), .data = lane.end().memory()->slot(slot), .num_bytes = lane.end().capacity(slot)};
}

void Executor::abort(const std::string& reason) {
  const int32_t rank = channels_->rank();
  channels_->fail({.kind = FailureKind::kAborted,
                   .rank = rank,
                   .op = {},
                   .text = (rank < 0 ? "the step" : "rank " + std::to_string(rank)) + " was aborted: " + reason});
}

}  // namespace pipert
