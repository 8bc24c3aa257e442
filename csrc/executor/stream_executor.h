// A plan whose lanes are streams of a CUDA device. The thread that calls step() enqueues every op of this process in
// the global order, compute on its own current stream, and goes on; what waits for what is events, placed by the plan.
//
// A step begins on the caller's stream and ends there: lanes fork from it and join it again. So whatever the caller
// enqueues afterwards sees all of the step, and a step can be captured into a graph. That order is also why nothing can
// hang when all streams share one hardware queue: the verifier proved it.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "device/cuda/graph.h"
#include "executor/compute_host.h"
#include "executor/progress.h"
#include "executor/stream_program.h"
#include "executor/watchdog.h"
#include "plan/plan.h"
#include "trace/record.h"
#include "transport/device/device_channels.h"

namespace pipert {

struct StreamExecutorOptions {
  int64_t timeout_ns = 600'000'000'000'000;
  bool trace = true;  // record when every op begins and ends
};

// What a RECV received. `header` stays until the RECV runs again.
struct DeviceReceived {
  std::span<const std::byte> header;
  cuda::Address address = 0;
  uint64_t num_bytes = 0;
};

class StreamExecutor {
 public:
  // Gives a slot of the plan device memory of at least `num_bytes`, that nothing enqueued so far still uses, and lets
  // go of what it had.
  using Allocate = std::function<cuda::Address(int32_t slot, size_t num_bytes)>;

  // `ranks`: those that `channels` serves, all of them. Throws ConfigError otherwise, PlanError, CudaError.
  StreamExecutor(std::shared_ptr<const Plan> plan, std::shared_ptr<DeviceChannels> channels, std::vector<int32_t> ranks,
                 Allocate allocate, StreamExecutorOptions options);
  ~StreamExecutor();
  StreamExecutor(const StreamExecutor&) = delete;
  StreamExecutor& operator=(const StreamExecutor&) = delete;

  const Plan& plan() const noexcept { return *plan_; }
  // The compute and collective ops of this process, in the global order.
  std::span<const int32_t> compute_ops() const noexcept { return program_.compute_ids; }

  // Counts of sends (see post()) start anew.
  void restart_counts();
  // Enqueues one step. After an exception nothing of it is left on the device, the peers know, and every further step
  // is refused. Throws what the host threw, or PeerLost, LaneTimeout, TransportError, CudaError.
  void step(int64_t step, ComputeHost& host, cuda::StreamView compute);
  // From within ComputeHost::run: launches `graph`, in which the op was captured. After a step in which every op did
  // so, steps launch those graphs instead of calling the host, and send what that step sent, from where it lay: shapes
  // and addresses stay.
  void run_as(cuda::GraphHandle* graph);
  // The caller has launched a captured step on `compute`: it is watched, and can be traced, like one that was enqueued.
  void launched(int64_t step, cuda::StreamView compute);
  // Returns when the device has finished the last step. Throws if something has failed, on the device or on another
  // rank: what was computed is to be trusted if this does not.
  void wait(ComputeHost& host);

  // What `send_op` is to send; from within ComputeHost::run of an op that it depends on. Returns how many sends of its
  // lane, since restart_counts(), have ended before anything that is enqueued from now on: their memory is free.
  uint64_t post(int32_t send_op, std::span<const Segment> segments, std::span<const std::byte> header);
  // What `recv_op` receives in this step; once it is enqueued.
  DeviceReceived received(int32_t recv_op) const;

  // The last step, in the global order; waits until the device has finished it. Empty if nothing was recorded.
  std::span<const TraceRecord> trace();
  // How far off the times of trace() may be from the host's clock.
  int64_t clock_uncertainty_ns() const noexcept { return clock_uncertainty_ns_; }
  // Where every lane stands, a line each. From any thread.
  std::string status() const;
  // From any thread: ends the step that runs, tells the peers, and refuses every further step.
  void abort(const std::string& reason);
  // Throws what has failed, here or on another rank.
  void check() const {
    if (channels_->host().failure().raised()) throw_failure();
  }

  bool running() const noexcept { return running_.load(std::memory_order_relaxed); }

 private:
  struct Events {
    std::vector<cuda::Event> done;        // per entry of the program
    std::vector<cuda::Event> begin, end;  // likewise, with timing; none without trace
    std::vector<cuda::Event> joined;      // per stream
  };
  struct Sent {
    std::vector<Segment> segments;
    std::vector<std::byte> header;
    uint64_t posted_steps = 0;  // the step that it was posted for, plus one
  };

  void enqueue_step(ComputeHost& host);
  void fork();
  void join();
  void enqueue(int32_t entry, ComputeHost& host);
  void compute(int32_t entry, ComputeHost& host);
  void send(int32_t entry, ComputeHost& host);
  void receive(int32_t entry, ComputeHost& host);
  void offer(int32_t entry);
  cuda::StreamView stream(int32_t index) const noexcept {
    return index < 0 ? compute_ : streams_[static_cast<size_t>(index)].view();
  }
  void wait(cuda::StreamView stream, const std::vector<int32_t>& entries) const;
  HostWait host_wait(int32_t op, int32_t peer, ComputeHost& host);
  cuda::Address allocate(int32_t edge, uint32_t slot, size_t num_bytes);
  void drain() noexcept;
  cuda::EventView end_of(int32_t entry) const noexcept;
  int64_t host_time_of_beginning();
  TraceRecord record_of(int32_t entry, int64_t began_ns) const;
  void await_device(cuda::EventView event, ComputeHost& host);
  std::string first_unfinished() const;
  std::string overdue() const;
  void fail(FailureKind kind, int32_t culprit, const std::string& text);
  [[noreturn]] void throw_failure() const {
    pipert::throw_failure(channels_->host().failure().failure(), *plan_, progress_);
  }
  const StreamOp& transfer(int32_t op, LaneKind lane, const char* kind) const;
  std::string text(int32_t op) const { return plan_->text(op); }

  std::shared_ptr<const Plan> plan_;
  std::shared_ptr<DeviceChannels> channels_;
  Allocate allocate_;
  StreamExecutorOptions options_;
  StreamProgram program_;
  std::vector<std::vector<int32_t>> plan_slot_;  // per edge and slot on it
  std::vector<cuda::Stream> streams_;
  Events events_;
  cuda::Event forked_{cuda::Timing::kOff}, finished_{cuda::Timing::kOff};  // the ends of the step
  cuda::Event began_{cuda::Timing::kOn}, anchor_{cuda::Timing::kOn};
  cuda::Stream clock_stream_{0};
  std::vector<Sent> sent_;  // per entry
  std::vector<Announcement> announced_;
  uint64_t counted_from_ = 0;            // the steps before restart_counts()
  std::vector<cuda::GraphExec> graphs_;  // of the compute ops of a step, in order
  std::vector<TraceRecord> records_;

  cuda::StreamView compute_;
  cuda::EventView last_;  // what the last step ends with
  bool capturing_ = false;
  bool known_ = false;     // graphs_ stands for the host
  bool replayed_ = false;  // the last step was a graph's
  std::atomic<int32_t> num_enqueued_{0};
  std::atomic<bool> running_{false};
  Progress progress_;
  bool failed_ = false;
  std::atomic<uint64_t> steps_{0};
  int64_t clock_uncertainty_ns_ = 0;
  ComputeHost* host_ = nullptr;  // of the step that runs
  std::unique_ptr<Watchdog> watchdog_;
};

}  // namespace pipert
