#include "executor/stream_executor.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

#include "core/clock.h"
#include "core/error.h"
#include "core/log.h"
#include "executor/paused.h"

namespace pipert {
namespace {

constexpr int64_t kSliceNs = 50'000'000;
constexpr int64_t kDrainNs = 5'000'000'000;
constexpr useconds_t kPollUs = 50;

}  // namespace

StreamExecutor::StreamExecutor(std::shared_ptr<const Plan> plan, std::shared_ptr<DeviceChannels> channels,
                               std::vector<int32_t> ranks, Allocate allocate, StreamExecutorOptions options)
    : plan_(std::move(plan)), channels_(std::move(channels)), allocate_(std::move(allocate)), options_(options) {
  Channels& host = channels_->host();
  if (host.topology().fingerprint != plan_->fingerprint) throw ConfigError("the channels were made for another plan");
  if (options_.timeout_ns <= 0) throw ConfigError("the timeout must be positive");
  host.check_serves(std::move(ranks));
  if (!host.claim()) throw ConfigError("another executor uses these channels, or they are closed or have failed");
  try {
    program_ = stream_program(*plan_, *channels_);
    const int priority = cuda::highest_priority();
    for (int32_t index = 0; index < program_.num_streams; ++index) {
      streams_.emplace_back(priority);
      events_.joined.emplace_back(cuda::Timing::kOff);
    }
    for (size_t entry = 0; entry < program_.ops.size(); ++entry) {
      events_.done.emplace_back(cuda::Timing::kOff);
      if (!options_.trace) continue;
      events_.begin.emplace_back(cuda::Timing::kOn);
      events_.end.emplace_back(cuda::Timing::kOn);
    }
    sent_.resize(program_.ops.size());
    announced_.resize(program_.ops.size());
    const std::vector<Edge>& edges = channels_->topology().edges;
    for (const Edge& edge : edges) plan_slot_.emplace_back(edge.num_slots, -1);
    for (const StreamOp& entry : program_.ops) {
      if (entry.lane == LaneKind::RECV) plan_slot_[entry.edge][entry.slot] = plan_->op_slot[entry.op];
    }
    for (int32_t edge = 0; edge < static_cast<int32_t>(edges.size()); ++edge) {
      channels_->slots(edge)->use(
          [this, edge](uint32_t slot, size_t num_bytes) { return this->allocate(edge, slot, num_bytes); });
    }
    watchdog_ = std::make_unique<Watchdog>(*channels_, options_.timeout_ns, [this] { return overdue(); });
  } catch (...) {
    host.release();
    throw;
  }
}

// Nothing may be in use when it goes. A step that can end does so before; one that cannot is ended.
StreamExecutor::~StreamExecutor() {
  if (steps_ > 0 && !failed_) {
    const int64_t deadline_ns = now_ns() + kDrainNs;
    try {
      while (!last_.happened() && now_ns() < deadline_ns && !channels_->host().failure().raised()) usleep(kPollUs);
    } catch (const Error& error) {
      log_warning(error.what());
    }
    if (channels_->host().failure().raised()) drain();
  }
  watchdog_.reset();
  channels_->host().release();
}

void StreamExecutor::restart_counts() { counted_from_ = steps_; }

void StreamExecutor::run_as(cuda::GraphHandle* graph) {
  const int32_t entry = num_enqueued_.load(std::memory_order_relaxed);
  const bool computes = running() && !known_ && entry < static_cast<int32_t>(program_.ops.size()) &&
                        program_.ops[entry].stream < 0 && graphs_.size() < program_.compute.size() &&
                        program_.compute[graphs_.size()] == entry;
  if (!computes) throw ConfigError("a graph is launched once by each op of a step, from the first one on");
  graphs_.emplace_back(graph);
  graphs_.back().launch(compute_);
}

void StreamExecutor::wait(ComputeHost& host) {
  if (last_) await_device(last_, host);
  check();
}

void StreamExecutor::await_device(cuda::EventView event, ComputeHost& host) {
  if (event.happened()) return;
  Paused paused(host);
  const int64_t begin_ns = now_ns();
  while (!event.happened()) {
    check();
    if (now_ns() - begin_ns > options_.timeout_ns) {
      fail(FailureKind::kTimeout, channels_->host().rank(), overdue());
      throw_failure();
    }
    usleep(kPollUs);
    paused.check_signals();
  }
}

void StreamExecutor::step(int64_t step, ComputeHost& host, cuda::StreamView compute) {
  if (running_.exchange(true)) throw Error("step was called while a step runs", {.step = step});
  progress_.step = step;
  compute_ = compute;
  host_ = &host;
  try {
    if (failed_)
      throw Error("no step can follow a failure: " + channels_->host().failure().failure().text, {.step = step});
    capturing_ = compute.capturing();
    if (capturing_) watchdog_->pause();
    enqueue_step(host);
  } catch (...) {
    if (!channels_->host().failure().raised()) {  // what the host threw, or the driver
      const int32_t op = progress_.op();
      const int32_t rank = op < 0 ? channels_->host().rank() : plan_->rank_of(op);
      fail(FailureKind::kAborted, rank,
           "rank " + std::to_string(rank) + " failed" + (op < 0 ? "" : " at " + text(op)) + ": " +
               host.what_was_thrown());
    }
    if (!capturing_) drain();
    failed_ = true;
    progress_.clear();
    if (capturing_) watchdog_->resume();
    running_.store(false);
    throw;
  }
  progress_.clear();
  if (capturing_) watchdog_->resume();
  running_.store(false);
}

void StreamExecutor::enqueue_step(ComputeHost& host) {
  ++steps_;
  num_enqueued_ = 0;
  replayed_ = false;
  fork();
  for (const int32_t recv : program_.free_at_start) offer(recv);
  for (int32_t entry = 0; entry < static_cast<int32_t>(program_.ops.size()); ++entry) {
    progress_.current.store(program_.ops[entry].op, std::memory_order_relaxed);
    if (channels_->host().failure().raised()) throw_failure();
    enqueue(entry, host);
    num_enqueued_.store(entry + 1, std::memory_order_release);
    for (const int32_t recv : program_.ops[entry].offers) offer(recv);
  }
  join();
  known_ = !program_.compute.empty() && graphs_.size() == program_.compute.size();
}

void StreamExecutor::fork() {
  if (options_.trace) compute_.record_for_host(began_.view(), capturing_);
  compute_.record(forked_.view());
  for (const cuda::Stream& stream : streams_) stream.view().wait(forked_.view());
}

void StreamExecutor::join() {
  for (size_t index = 0; index < streams_.size(); ++index) {
    streams_[index].view().record(events_.joined[index].view());
    compute_.wait(events_.joined[index].view());
  }
  if (capturing_) return;
  compute_.record(finished_.view());
  last_ = finished_.view();
  watchdog_->expect(last_);
}

void StreamExecutor::launched(int64_t step, cuda::StreamView compute) {
  check();
  progress_.step = step;
  replayed_ = true;
  compute.record(finished_.view());
  last_ = finished_.view();
  watchdog_->expect(last_);
}

void StreamExecutor::enqueue(int32_t entry, ComputeHost& host) {
  const StreamOp& op = program_.ops[entry];
  const cuda::StreamView lane = stream(op.stream);
  wait(lane, op.waits);
  if (options_.trace) lane.record_for_host(events_.begin[entry].view(), capturing_);
  if (op.lane == LaneKind::SEND) {
    send(entry, host);
  } else if (op.lane == LaneKind::RECV) {
    receive(entry, host);
  } else {
    compute(entry, host);
  }
  if (options_.trace) lane.record_for_host(events_.end[entry].view(), capturing_);
  if (!options_.trace || capturing_) lane.record(events_.done[entry].view());
}

// What is recorded for the host while capturing is no dependency within the graph.
cuda::EventView StreamExecutor::end_of(int32_t entry) const noexcept {
  return options_.trace && !capturing_ ? events_.end[entry].view() : events_.done[entry].view();
}

void StreamExecutor::wait(cuda::StreamView stream, const std::vector<int32_t>& entries) const {
  for (const int32_t entry : entries) stream.wait(end_of(entry));
}

void StreamExecutor::offer(int32_t entry) {
  const StreamOp& recv = program_.ops[entry];
  const cuda::StreamView offers = stream(recv.offers_stream);
  wait(offers, recv.free_after);
  channels_->recv_end(recv.edge).offer(recv.slot, offers);
}

void StreamExecutor::compute(int32_t entry, ComputeHost& host) {
  const NvtxRange range(program_.ops[entry].nvtx, 0);
  const auto index = std::ranges::lower_bound(program_.compute, entry) - program_.compute.begin();
  if (known_) {
    graphs_[static_cast<size_t>(index)].launch(compute_);
  } else {
    host.run(static_cast<size_t>(index));
  }
}

void StreamExecutor::send(int32_t entry, ComputeHost& host) {
  const StreamOp& op = program_.ops[entry];
  const Sent& sent = sent_[entry];
  if (!known_ && sent.posted_steps != steps_) {
    const int32_t rank = plan_->rank_of(op.op);
    throw ConfigError(
        "the handler before " + text(op.op) + " of rank " + std::to_string(rank) + " posted nothing to send",
        {.rank = rank, .op = text(op.op), .step = progress_.step});
  }
  const NvtxRange range(op.nvtx, packed_bytes(sent.segments));
  const DeviceMessage message{.segments = sent.segments, .header = sent.header, .known = known_};
  channels_->send_end(op.edge).send(op.slot, message, stream(op.stream),
                                    host_wait(op.op, plan_->lane_of_op(op.op).peer, host));
}

void StreamExecutor::receive(int32_t entry, ComputeHost& host) {
  const StreamOp& op = program_.ops[entry];
  DeviceRecvEnd& end = channels_->recv_end(op.edge);
  const HostWait wait = host_wait(op.op, plan_->lane_of_op(op.op).peer, host);
  if (!known_) {
    announced_[entry] = end.announced(wait);
    end.prepare(op.slot, announced_[entry].packed_bytes());
  }
  const NvtxRange range(op.nvtx, announced_[entry].packed_bytes());
  end.receive(op.slot, announced_[entry].segment_bytes, stream(op.stream), wait);
}

// A transfer is on its rank's way, so the deadline counts from when the host comes to it.
HostWait StreamExecutor::host_wait(int32_t op, int32_t peer, ComputeHost& host) {
  return [this, op, peer, &host](const std::function<bool(int64_t)>& reached) {
    progress_.awaited.store(op, std::memory_order_relaxed);
    Paused paused(host);
    const int64_t begin_ns = now_ns();
    Channels& channels = channels_->host();
    for (;;) {
      const bool left = channels.left(peer);  // before the last look
      if (reached(kSliceNs)) break;
      if (channels.failure().raised()) throw_failure();
      if (left) {
        fail(FailureKind::kPeerLost, peer,
             "rank " + std::to_string(peer) + " left before its end of " + text(op) + " was done");
        throw_failure();
      }
      if (now_ns() - begin_ns > options_.timeout_ns) {
        const int32_t rank = plan_->rank_of(op);
        fail(FailureKind::kTimeout, rank,
             "rank " + std::to_string(rank) + " waited " + std::to_string(options_.timeout_ns / 1'000'000) +
                 " ms for rank " + std::to_string(peer) + " to come to " + text(op));
        throw_failure();
      }
      paused.check_signals();
    }
    progress_.awaited.store(-1, std::memory_order_relaxed);
  };
}

// New memory may have been used by what the caller's stream has not finished yet, and the old one too; so this waits,
// once for each size that a slot has.
cuda::Address StreamExecutor::allocate(int32_t edge, uint32_t slot, size_t num_bytes) {
  const int32_t plan_slot = plan_slot_[edge][slot];
  if (capturing_) {
    throw ConfigError("slot " + std::to_string(plan_slot) + " needs " + std::to_string(num_bytes) +
                      " bytes, more than it has: a step of these shapes must run before it is captured");
  }
  const cuda::Address address = allocate_(plan_slot, num_bytes);
  compute_.record(anchor_.view());
  await_device(anchor_.view(), *host_);
  return address;
}

uint64_t StreamExecutor::post(int32_t send_op, std::span<const Segment> segments, std::span<const std::byte> header) {
  const StreamOp& op = transfer(send_op, LaneKind::SEND, "a SEND");
  const ErrorContext context{.rank = plan_->rank_of(send_op), .op = text(send_op), .step = progress_.step};
  const int32_t current = progress_.current.load(std::memory_order_relaxed);
  const std::span<const int32_t> dependencies = plan_->deps_of(send_op);
  if (std::ranges::find(dependencies, current) == dependencies.end()) {
    throw ConfigError(context.op + " is posted by " + (current < 0 ? "nobody: no op is running" : text(current)) +
                          ", but follows " + text(dependencies.back()),
                      context);
  }
  for (const Segment& segment : segments) {
    if (segment.data == nullptr && segment.num_bytes > 0) {
      throw ConfigError(context.op + " is to send " + std::to_string(segment.num_bytes) + " bytes from address 0",
                        context);
    }
  }
  Sent& sent = sent_[program_.entry_of[send_op]];
  if (sent.posted_steps == steps_) throw ConfigError(context.op + " was posted twice in one step", context);
  sent.segments.assign(segments.begin(), segments.end());
  sent.header.assign(header.begin(), header.end());
  sent.posted_steps = steps_;
  const uint64_t per_step = plan_->lane_ops[plan_->op_lane[send_op]].size();
  return (steps_ - 1 - counted_from_) * per_step + static_cast<uint64_t>(op.sent_before);
}

DeviceReceived StreamExecutor::received(int32_t recv_op) const {
  const StreamOp& op = transfer(recv_op, LaneKind::RECV, "a RECV");
  const int32_t entry = program_.entry_of[recv_op];
  if (entry >= num_enqueued_.load(std::memory_order_acquire)) {
    throw ConfigError(text(recv_op) + " has not received anything in this step yet",
                      {.rank = plan_->rank_of(recv_op), .op = text(recv_op), .step = progress_.step});
  }
  return {.header = announced_[entry].header,
          .address = channels_->slots(op.edge)->at(op.slot).address,
          .num_bytes = announced_[entry].packed_bytes()};
}

const StreamOp& StreamExecutor::transfer(int32_t op, LaneKind lane, const char* kind) const {
  if (op < 0 || op >= plan_->num_ops()) throw ConfigError("op " + std::to_string(op) + " does not exist");
  const int32_t entry = program_.entry_of[op];
  if (entry < 0 || program_.ops[entry].lane != lane) {
    throw ConfigError(text(op) + " is not " + kind + " of this process", {.rank = plan_->rank_of(op), .op = text(op)});
  }
  return program_.ops[entry];
}

void StreamExecutor::abort(const std::string& reason) {
  const int32_t rank = channels_->host().rank();
  fail(FailureKind::kAborted, rank,
       (rank < 0 ? "the step" : "rank " + std::to_string(rank)) + " was aborted: " + reason);
}

void StreamExecutor::fail(FailureKind kind, int32_t culprit, const std::string& failure_text) {
  const int32_t op = progress_.op();
  channels_->host().fail({.kind = kind, .rank = culprit, .op = op < 0 ? "" : text(op), .text = failure_text});
}

// After a failure: lets the device come to an end of what was enqueued, so that its memory can go.
void StreamExecutor::drain() noexcept {
  try {
    for (size_t index = 0; index < streams_.size(); ++index) {
      streams_[index].view().record(events_.joined[index].view());
      compute_.wait(events_.joined[index].view());
    }
    compute_.record(finished_.view());
    const int64_t deadline_ns = now_ns() + kDrainNs;
    while (!finished_.view().happened()) {
      channels_->release();
      usleep(kPollUs);
      if (now_ns() > deadline_ns) {
        log_warning("the device does not come to the end of a step that failed; " + first_unfinished());
        return;
      }
    }
  } catch (const Error& error) {
    log_warning(std::string("after a step that failed: ") + error.what());
  }
}

std::string StreamExecutor::first_unfinished() const {
  const int32_t num_enqueued = num_enqueued_.load(std::memory_order_acquire);
  if (replayed_) return "it runs a captured step";
  for (int32_t entry = 0; entry < num_enqueued; ++entry) {
    if (!end_of(entry).happened()) return "the first op that has not ended is " + text(program_.ops[entry].op);
  }
  return "all ops have ended";
}

std::string StreamExecutor::overdue() const {
  const int32_t rank = channels_->host().rank();
  return "the device of " + (rank < 0 ? "all ranks" : "rank " + std::to_string(rank)) + " did not finish within " +
         std::to_string(options_.timeout_ns / 1'000'000) + " ms; " + first_unfinished();
}

}  // namespace pipert
