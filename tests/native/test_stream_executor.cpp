// The executor over streams, on a CUDA driver that runs on the host: compute is work of the compute stream, which
// checks what has arrived and makes what is sent, and which spoils a message's memory as soon as the plan says that it
// is free. Each test has a process of its own, because the driver reads its settings once; some have a process for each
// rank.

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <deque>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/clock.h"
#include "core/error.h"
#include "device/cuda/graph.h"
#include "executor/stream_executor.h"
#include "expect.h"
#include "hand_plan.h"
#include "process.h"
#include "transport/device/announcer.h"
#include "transport/nccl/nccl_communicator.h"

namespace {

using namespace pipert;

constexpr int64_t kTimeoutMs = 20'000;
constexpr std::byte kSpoiled{0xEE};
constexpr int kRelaxedCapture = 2;  // the tests allocate meanwhile

std::shared_ptr<const Plan> plan_of_file(const std::string& name) {
  std::ifstream file(std::string(PIPERT_TEST_PLANS) + "/" + name + ".json");
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  EXPECT(!text.empty());
  auto plan = std::make_shared<Plan>(parse_plan(text));
  verify(*plan);
  return plan;
}

std::byte pattern(int32_t send, int64_t step) { return static_cast<std::byte>(send * 7 + step * 13 + 1); }

// What the compute stream does for one op. It lives as long as the host, because graphs do it again.
struct Work {
  std::function<void()> run;
  static void call(void* work) { static_cast<Work*>(work)->run(); }
};

class DeviceCompute final : public ComputeHost {
 public:
  DeviceCompute(std::shared_ptr<const Plan> plan, std::shared_ptr<DeviceChannels> channels, std::vector<int32_t> ranks,
                StreamExecutorOptions options)
      : plan_(plan), compute_(0), side_(0) {
    executor_ = std::make_unique<StreamExecutor>(
        plan, std::move(channels), std::move(ranks),
        [this](int32_t slot, size_t num_bytes) {
          slots_.erase(slot);
          return slots_.emplace(slot, cuda::DeviceBuffer(num_bytes)).first->second.address();
        },
        options);
    for (int32_t op = 0; op < plan_->num_ops(); ++op) {
      for (const int32_t dependency : plan_->deps_of(op)) {
        const LaneKind lane = lane_of(plan_->ops[op].kind);
        if (lane == LaneKind::SEND) sends_[dependency].push_back(op);
        if (lane == LaneKind::COMPUTE && lane_of(plan_->ops[dependency].kind) == LaneKind::RECV)
          reads_[op].push_back(dependency);
      }
    }
  }

  void step(int64_t step) {
    set_step(step);
    executor_->step(step, *this, compute_.view());
  }
  // What the device's work takes for the number of the step.
  void set_step(int64_t step) {
    compute_.view().synchronize();
    host_step_ = step;
    step_ = step;
  }

  void run(size_t index) override {
    const int32_t op = executor_->compute_ops()[index];
    if (plan_->text(op) == fail_at) throw std::runtime_error("boom");
    if (!capture_ops) {
      enqueue(op, compute_.view());
      return;
    }
    PIPERT_CUDA_TRY(stream_begin_capture(side_.view().get(), kRelaxedCapture));
    enqueue(op, side_.view());
    cuda::GraphHandle* graph = nullptr;
    PIPERT_CUDA_TRY(stream_end_capture(side_.view().get(), &graph));
    executor_->run_as(graph);
    PIPERT_CUDA_TRY(graph_destroy(graph));
  }
  std::string what_was_thrown() override { return "boom"; }

  // Waits for the device, and checks what its work has found.
  void finish() {
    executor_->wait(*this);
    EXPECT(wrong_.load() == nullptr);
  }

  StreamExecutor& executor() { return *executor_; }
  cuda::StreamView stream() const { return compute_.view(); }

  size_t num_bytes = 1000;
  bool capture_ops = false;
  bool spoils = true;  // the memory of messages that are gone
  std::string fail_at;
  std::string slow_at;  // the device takes slow_ms there
  int slow_ms = 0;

 private:
  void enqueue(int32_t op, cuda::StreamView stream) {
    for (const int32_t recv : reads_[op]) check(recv, stream);
    if (plan_->text(op) == slow_at) {
      later(stream, [this] { usleep(slow_ms * 1000); });
    }
    for (const int32_t send : sends_[op]) make(send, stream);
  }

  void check(int32_t recv, cuda::StreamView stream) {
    const DeviceReceived received = executor_->received(recv);
    EXPECT(received.num_bytes == num_bytes);
    EXPECT(received.header.size() == sizeof host_step_);
    EXPECT(std::memcmp(received.header.data(), &host_step_, sizeof host_step_) == 0);
    later(stream, [this, recv, data = reinterpret_cast<const std::byte*>(received.address), n = num_bytes] {
      const std::byte expected = pattern(recv - 1, step_);
      for (size_t index = 0; index < n; ++index) {
        if (data[index] != expected) wrong_ = "a message is not what was sent";
      }
    });
  }

  // Two segments, so that their places in the slot matter.
  void make(int32_t send, cuda::StreamView stream) {
    auto& buffers = out_[plan_->op_lane[send]];
    cuda::DeviceBuffer& buffer = buffers.emplace_back(std::max<size_t>(num_bytes, 1));
    auto* data = reinterpret_cast<std::byte*>(buffer.address());
    later(stream, [this, send, data, n = num_bytes] { std::memset(data, int(pattern(send, step_)), n); });
    const size_t first = num_bytes / kSegmentAlignment / 2 * kSegmentAlignment;
    const Segment segments[] = {{data, first}, {data + first, num_bytes - first}};
    const uint64_t num_free = executor_->post(send, segments, std::as_bytes(std::span<const int64_t>(&host_step_, 1)));
    uint64_t& spoiled = spoiled_[plan_->op_lane[send]];
    EXPECT(num_free < buffers.size() + 0U || num_free == 0);
    for (; spoils && spoiled < num_free; ++spoiled) {
      cuda::DeviceBuffer& old = buffers[spoiled];
      auto* free = reinterpret_cast<std::byte*>(old.address());
      later(stream, [free, n = old.num_bytes()] { std::memset(free, int(kSpoiled), n); });
    }
    num_spoiled += num_free;
  }

  void later(cuda::StreamView stream, std::function<void()> run) {
    Work& work = work_.emplace_back(Work{std::move(run)});
    PIPERT_CUDA_TRY(launch_host_func(stream.get(), &Work::call, &work));
  }

 public:
  uint64_t num_spoiled = 0;

 private:
  std::shared_ptr<const Plan> plan_;
  cuda::Stream compute_, side_;
  std::map<int32_t, cuda::DeviceBuffer> slots_;
  std::map<int32_t, std::deque<cuda::DeviceBuffer>> out_;  // per lane: every message's memory
  std::map<int32_t, uint64_t> spoiled_;
  std::map<int32_t, std::vector<int32_t>> reads_, sends_;
  std::deque<Work> work_;
  int64_t host_step_ = 0;
  std::atomic<int64_t> step_{0};
  std::atomic<const char*> wrong_{nullptr};
  std::unique_ptr<StreamExecutor> executor_;  // first to go
};

std::vector<int32_t> all_ranks(const Plan& plan) {
  std::vector<int32_t> ranks(plan.num_ranks);
  for (int32_t rank = 0; rank < plan.num_ranks; ++rank) ranks[rank] = rank;
  return ranks;
}

StreamExecutorOptions options(bool trace, int64_t timeout_ms = kTimeoutMs) {
  return {.timeout_ns = timeout_ms * 1'000'000, .trace = trace};
}

DeviceCompute in_one_process(const std::shared_ptr<const Plan>& plan, DeviceTransport transport, bool trace = true,
                             int64_t timeout_ms = kTimeoutMs) {
  const auto host = Channels::local(Topology::of(*plan, kAnnouncements));
  const auto channels = std::make_shared<DeviceChannels>(host, transport, 0, timeout_ms);
  return DeviceCompute(plan, channels, all_ranks(*plan), options(trace, timeout_ms));
}

// Messages grow, shrink, and are empty.
void run_steps(DeviceCompute& compute) {
  int64_t step = 0;
  for (const size_t num_bytes : {1000, 70'000, 0, 123, 70'001}) {
    compute.num_bytes = num_bytes;
    compute.step(step++);
    compute.finish();
  }
}

void check_trace(DeviceCompute& compute) {
  const std::span<const TraceRecord> records = compute.executor().trace();
  const Plan& plan = compute.executor().plan();
  EXPECT(!records.empty());
  std::map<uint32_t, int64_t> end_of_lane;
  for (const TraceRecord& record : records) {
    EXPECT(record.ready_ns <= record.start_ns && record.start_ns <= record.end_ns);
    EXPECT(record.end_ns <= now_ns() + compute.executor().clock_uncertainty_ns());
    EXPECT(now_ns() - record.start_ns < 60'000'000'000);
    const bool receives = lane_of(plan.ops[record.op].kind) == LaneKind::RECV;
    if (!receives) EXPECT(record.start_ns >= end_of_lane[record.lane]);
    end_of_lane[record.lane] = record.end_ns;
  }
}

void run_eagerly(const std::shared_ptr<const Plan>& plan, DeviceTransport transport) {
  for (const bool trace : {true, false}) {
    DeviceCompute compute = in_one_process(plan, transport, trace);
    run_steps(compute);
    if (trace) {
      check_trace(compute);
    } else {
      EXPECT(compute.executor().trace().empty());
    }
    EXPECT(compute.executor().status().find("ops enqueued") != std::string::npos);
  }
}

void run_as_one_graph(const std::shared_ptr<const Plan>& plan, DeviceTransport transport, bool trace) {
  DeviceCompute compute = in_one_process(plan, transport, trace);
  compute.step(0);
  compute.finish();
  compute.set_step(1);
  PIPERT_CUDA_TRY(stream_begin_capture(compute.stream().get(), kRelaxedCapture));
  compute.executor().step(1, compute, compute.stream());
  cuda::GraphHandle* graph = nullptr;
  PIPERT_CUDA_TRY(stream_end_capture(compute.stream().get(), &graph));
  const cuda::GraphExec exec(graph);
  PIPERT_CUDA_TRY(graph_destroy(graph));
  for (const int64_t step : {1, 2, 3}) {
    compute.set_step(step);
    exec.launch(compute.stream());
    compute.executor().launched(step, compute.stream());
    compute.finish();
    if (trace) check_trace(compute);
  }
}

void run_op_graphs(const std::shared_ptr<const Plan>& plan, DeviceTransport transport) {
  DeviceCompute compute = in_one_process(plan, transport);
  compute.step(0);
  compute.finish();
  compute.capture_ops = true;
  compute.step(1);
  compute.finish();
  compute.fail_at = plan->text(compute.executor().compute_ops()[0]);  // the host is not asked again
  for (const int64_t step : {2, 3, 4}) {
    compute.step(step);
    compute.finish();
    check_trace(compute);
  }
}

void run_all_ways(DeviceTransport transport) {
  for (const char* name : {"1f1b", "zb-v", "interleaved", "opposite", "overlapped", "sharded", "forward-only"}) {
    const std::shared_ptr<const Plan> plan = plan_of_file(name);
    run_eagerly(plan, transport);
    run_as_one_graph(plan, transport, true);
    run_as_one_graph(plan, transport, false);
    run_op_graphs(plan, transport);
  }
}

const Environment kQuiet{{"PIPERT_LIBCUDA", PIPERT_FAKE_CUDA}, {"PIPERT_NCCL", PIPERT_FAKE_NCCL}};

Environment with(Environment more) {
  more.insert(kQuiet.begin(), kQuiet.end());
  return more;
}

const std::vector<Environment> kWeathers{
    kQuiet,
    with({{"FAKE_CUDA_JITTER_US", "150"}, {"FAKE_CUDA_SEED", "1"}}),
    with({{"FAKE_CUDA_MAX_CONNECTIONS", "1"}}),
    with({{"FAKE_CUDA_MAX_CONNECTIONS", "1"}, {"FAKE_CUDA_JITTER_US", "20"}, {"FAKE_CUDA_SEED", "2"}}),
};

void test_one_process() {
  for (const Environment& weather : kWeathers) {
    for (const DeviceTransport transport : {DeviceTransport::kLocal, DeviceTransport::kIpc, DeviceTransport::kNccl}) {
      EXPECT(status_of_child(weather, [&] { run_all_ways(transport); }) == 0);
    }
  }
}

// How the processes of a test meet.
struct Meeting {
  std::string session;
  std::vector<nccl::UniqueId> nccl_ids;
};

// An id for each edge, made in a process of its own: this one must not open a driver before it forks.
std::vector<nccl::UniqueId> make_nccl_ids(size_t num_edges) {
  Pipe pipe;
  const int status = status_of_child(kQuiet, [&] {
    for (size_t edge = 0; edge < num_edges; ++edge) pipe.put(make_nccl_unique_id());
  });
  EXPECT(status == 0);
  std::vector<nccl::UniqueId> ids;
  for (size_t edge = 0; edge < num_edges; ++edge) ids.push_back(pipe.take<nccl::UniqueId>());
  return ids;
}

// A process per rank; what each ends with, by rank.
std::vector<int> run_ranks(const Environment& environment, const Plan& plan,
                           const std::function<void(int32_t rank, const Meeting& meeting)>& body) {
  const Meeting meeting{.session = "stream-executor-" + std::to_string(getpid()) + "-" + std::to_string(now_ns()),
                        .nccl_ids = make_nccl_ids(Topology::of(plan).edges.size())};
  std::vector<pid_t> children;
  for (int32_t rank = 0; rank < plan.num_ranks; ++rank) {
    children.push_back(start_child([&] {
      for (const auto& [name, value] : environment) setenv(name.c_str(), value.c_str(), 1);
      body(rank, meeting);
    }));
  }
  std::vector<int> statuses;
  for (const pid_t child : children) statuses.push_back(status_of(child));
  return statuses;
}

DeviceCompute as_rank(const std::shared_ptr<const Plan>& plan, int32_t rank, const Meeting& meeting,
                      DeviceTransport transport, int64_t timeout_ms = kTimeoutMs) {
  const auto host = Channels::shm(Topology::of(*plan, kAnnouncements), rank, meeting.session, kTimeoutMs);
  const auto channels = std::make_shared<DeviceChannels>(host, transport, 0, kTimeoutMs, Interrupt(), meeting.nccl_ids);
  return DeviceCompute(plan, channels, {rank}, options(true, timeout_ms));
}

void test_a_process_per_rank(DeviceTransport transport) {
  for (const Environment& weather : kWeathers) {
    for (const char* name : {"zb-v", "opposite"}) {
      const std::shared_ptr<const Plan> plan = plan_of_file(name);
      const std::vector<int> statuses = run_ranks(weather, *plan, [&](int32_t rank, const Meeting& meeting) {
        DeviceCompute compute = as_rank(plan, rank, meeting, transport);
#ifdef __SANITIZE_THREAD__
        compute.spoils = false;  // that a message is gone follows from what other processes do, which TSan does not see
#endif
        run_steps(compute);
        check_trace(compute);
        compute.num_bytes = 5000;
        compute.capture_ops = true;
        compute.step(5);
        compute.finish();
        for (const int64_t step : {6, 7, 8}) {
          compute.step(step);
          compute.finish();
        }
      });
      EXPECT(statuses == std::vector<int>(plan->num_ranks, 0));
    }
  }
}

// The device of rank 0 waits for a message that never comes; it comes to an end all the same, and works on.
void test_a_peer_that_is_killed(DeviceTransport transport) {
  const auto plan = std::make_shared<const Plan>(HandPlan::chain(2, 4));
  for (const Environment& weather : kWeathers) {
    const std::vector<int> statuses = run_ranks(weather, *plan, [&](int32_t rank, const Meeting& meeting) {
      DeviceCompute compute = as_rank(plan, rank, meeting, transport);
      compute.step(0);
      compute.finish();
      if (rank == 1) {
        compute.slow_at = "1B2";
        compute.slow_ms = 60'000;
        compute.step(1);
        usleep(200'000);
        raise(SIGKILL);
      }
      const int64_t begin_ns = now_ns();
      EXPECT_THROWS(PeerLost, (compute.step(1), compute.finish()), "rank 1");
      EXPECT(now_ns() - begin_ns < 10'000'000'000);
      compute.stream().synchronize();
      EXPECT_THROWS(PeerLost, compute.step(2), "rank 1");
      EXPECT_THROWS(Error, compute.step(3), "no step can follow a failure");
    });
    EXPECT(statuses[0] == 0);
    EXPECT(WIFSIGNALED(statuses[1]) && WTERMSIG(statuses[1]) == SIGKILL);
  }
}

void test_a_peer_whose_handler_raises(DeviceTransport transport) {
  const auto plan = std::make_shared<const Plan>(HandPlan::chain(3, 4));
  const std::vector<int> statuses = run_ranks(kQuiet, *plan, [&](int32_t rank, const Meeting& meeting) {
    DeviceCompute compute = as_rank(plan, rank, meeting, transport);
    if (rank == 1) {
      compute.fail_at = "1F2";
      EXPECT_THROWS(std::runtime_error, compute.step(0), "boom");
    } else {
      EXPECT_THROWS(PeerLost, (compute.step(0), compute.finish()), "rank 1 failed at 1F2: boom");
    }
    compute.stream().synchronize();
  });
  EXPECT(statuses == std::vector<int>(3, 0));
}

void test_a_device_that_takes_too_long() {
  const auto body = [] {
    const auto plan = std::make_shared<const Plan>(HandPlan::chain(2, 4));
    DeviceCompute compute = in_one_process(plan, DeviceTransport::kLocal, true, 300);
    compute.slow_at = "1F1";
    compute.slow_ms = 1500;
    const LaneTimeout error =
        EXPECT_THROWS(LaneTimeout, (compute.step(0), compute.finish()), "did not finish within 300 ms");
    EXPECT(std::string(error.what()).find("the first op that has not ended is 1F1") != std::string::npos);
    compute.stream().synchronize();
  };
  EXPECT(status_of_child(kQuiet, body) == 0);
}

void test_a_driver_that_refuses() {
  const auto plan = std::make_shared<const Plan>(HandPlan::chain(2, 4));
  for (const char* fault : {"cuMemcpyAsync:5", "cuEventRecord:60", "cuStreamWaitEvent:40", "cuLaunchHostFunc:9"}) {
    const auto body = [&] {
      DeviceCompute compute = in_one_process(plan, DeviceTransport::kLocal, false);
      EXPECT_THROWS(CudaError, (compute.step(0), compute.step(1), compute.step(2)), "CUDA_ERROR_UNKNOWN");
      compute.stream().synchronize();
      EXPECT_THROWS(Error, compute.step(3), "no step can follow a failure");
    };
    EXPECT(status_of_child(with({{"FAKE_CUDA_FAIL", fault}}), body) == 0);
  }
}

void test_memory_is_free_before_the_step_ends() {
  const auto body = [] {
    const std::shared_ptr<const Plan> plan = plan_of_file("1f1b");
    DeviceCompute compute = in_one_process(plan, DeviceTransport::kLocal);
    compute.step(0);
    compute.finish();
    EXPECT(compute.num_spoiled > 0);
  };
  EXPECT(status_of_child(kQuiet, body) == 0);
}

void test_bad_use() {
  const auto body = [] {
    const auto plan = std::make_shared<const Plan>(HandPlan::chain(2, 2));
    DeviceCompute compute = in_one_process(plan, DeviceTransport::kLocal);
    StreamExecutor& executor = compute.executor();
    EXPECT_THROWS(ConfigError, executor.run_as(nullptr), "launched once by each op");
    EXPECT_THROWS(ConfigError, executor.post(HandPlan::find(*plan, "0SEND_F0"), {}, {}), "no op is running");
    EXPECT_THROWS(ConfigError, executor.post(HandPlan::find(*plan, "0F0"), {}, {}), "is not a SEND");
    EXPECT_THROWS(ConfigError, executor.received(HandPlan::find(*plan, "1RECV_F0")), "not received anything");
    EXPECT_THROWS(ConfigError, executor.received(-1), "does not exist");
    const auto host = Channels::local(Topology::of(*plan, kAnnouncements));
    const auto channels = std::make_shared<DeviceChannels>(host, DeviceTransport::kLocal, 0, kTimeoutMs);
    EXPECT_THROWS(ConfigError, DeviceCompute(plan, channels, {0}, options(true)), "rank 1 is missing");
    // Under capture a slot cannot grow.
    PIPERT_CUDA_TRY(stream_begin_capture(compute.stream().get(), kRelaxedCapture));
    EXPECT_THROWS(ConfigError, executor.step(0, compute, compute.stream()), "must run before it is captured");
    cuda::GraphHandle* graph = nullptr;
    cuda::driver().stream_end_capture(compute.stream().get(), &graph);
    compute.stream().synchronize();
  };
  EXPECT(status_of_child(kQuiet, body) == 0);
}

}  // namespace

int main() {
  test_one_process();
  for (const DeviceTransport transport : {DeviceTransport::kIpc, DeviceTransport::kNccl}) {
    test_a_process_per_rank(transport);
    test_a_peer_that_is_killed(transport);
    test_a_peer_whose_handler_raises(transport);
  }
  test_a_device_that_takes_too_long();
  test_a_driver_that_refuses();
  test_memory_is_free_before_the_step_ends();
  test_bad_use();
  return 0;
}
