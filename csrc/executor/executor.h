// A plan and its resources, made once, stepped many times. Nothing is decided while it runs: the plan says what waits
// for what.
//
// Compute and collective ops run on the thread that calls step(), in the global order; with several ranks in this
// process, those of all of them. A compute op waits for the messages it reads; when it has finished, the thread offers
// the slots that it freed (RecvLane) and hands on what it sends (SendLane).
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "executor/compute_host.h"
#include "executor/progress.h"
#include "executor/wiring.h"
#include "plan/plan.h"
#include "trace/record.h"
#include "transport/channels.h"

namespace pipert {

struct ExecutorOptions {
  int64_t spin_ns = 0;  // how long a wait looks again and again before it sleeps
  int64_t timeout_ns = 600'000'000'000'000;
  std::vector<LinkDelay> delays = {};  // per lane of the plan, used of those that receive; none: no delays
};

// What a RECV received; `header` stays until the RECV runs again.
struct Received {
  std::span<const std::byte> header;
  std::byte* data = nullptr;
  uint64_t num_bytes = 0;
};

// The part of a slot that has ever been used. Holding `memory` keeps it mapped.
struct SlotView {
  std::shared_ptr<EdgeMemory> memory;
  std::byte* data = nullptr;
  size_t num_bytes = 0;
};

class Executor {
 public:
  // `ranks`: those that `channels` serves, all of them. Throws ConfigError otherwise, and PlanError for a plan with
  // dependencies that the host backend does not know.
  Executor(std::shared_ptr<const Plan> plan, std::shared_ptr<Channels> channels, std::vector<int32_t> ranks,
           ExecutorOptions options);
  ~Executor();
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  const Plan& plan() const noexcept { return *plan_; }
  // The compute and collective ops of this process, in the global order.
  std::span<const int32_t> compute_ops() const noexcept { return wiring_.program_ids; }

  // Counts of finished sends start anew.
  void restart_counts();
  // Runs one step; returns when all lanes have finished it. After an exception nothing is being copied any more, the
  // peers know, and every further step is refused. Throws what the host threw, or PeerLost, LaneTimeout,
  // TransportError.
  void step(int64_t step, ComputeHost& host);

  // What `send_op` is to send; from within ComputeHost::run of an op that it depends on. The memory stays untouched
  // until the count of finished sends says so. Returns that count, of the lane, since restart_counts().
  uint64_t post(int32_t send_op, std::span<const Segment> segments, std::span<const std::byte> header);
  // What `recv_op` received in this step.
  Received received(int32_t recv_op) const;
  SlotView slot(int32_t recv_op) const;

  // The last step that ended well, in the global order.
  std::span<const TraceRecord> trace() const noexcept { return wiring_.records; }
  // Where every lane stands, a line each. From any thread.
  std::string status() const;
  // From any thread: ends the step that runs, tells the peers, and refuses every further step.
  void abort(const std::string& reason);
  // Throws what has failed, here or on another rank.
  void check() const {
    if (channels_->failure().raised()) throw_failure();
  }

  bool running() const noexcept { return running_.load(std::memory_order_relaxed); }

 private:
  void run_step(ComputeHost& host);
  void wait_for_message(RecvLane& lane, uint64_t position, int32_t waiting_op, ComputeHost& host);
  void wait_for_sends(SendLane& lane, ComputeHost& host);
  [[noreturn]] void throw_failure() const { pipert::throw_failure(channels_->failure().failure(), *plan_, progress_); }
  void fail(FailureKind kind, int32_t culprit, const std::string& text);
  void quiesce();
  std::string text(int32_t op) const { return plan_->text(op); }

  std::shared_ptr<const Plan> plan_;
  std::shared_ptr<Channels> channels_;
  ExecutorOptions options_;

  Wiring wiring_;                      // after the plan and the channels, which its threads use
  std::vector<uint64_t> send_counts_;  // per send lane: finished before restart_counts()

  std::atomic<bool> running_{false};
  Progress progress_;
  bool failed_ = false;
  std::atomic<uint64_t> steps_{0};  // begun since the executor was made
};

}  // namespace pipert
