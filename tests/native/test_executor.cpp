// The executor over a plan made by hand: all ranks on one thread, and one thread per rank over shared memory.

#include <unistd.h>

#include <atomic>
#include <cstring>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "core/clock.h"
#include "core/error.h"
#include "executor/executor.h"
#include "expect.h"
#include "hand_plan.h"

namespace {

using namespace pipert;

std::shared_ptr<const Plan> make_plan(int32_t num_ranks, int32_t num_microbatches) {
  return std::make_shared<const Plan>(HandPlan::chain(num_ranks, num_microbatches));
}

// Each op sends "what it is" and checks that it received "what its sender is".
class Checking final : public ComputeHost {
 public:
  Checking(std::shared_ptr<const Plan> plan, std::shared_ptr<Channels> channels, std::vector<int32_t> ranks,
           size_t num_bytes, ExecutorOptions options = {.spin_ns = 0, .timeout_ns = 20'000'000'000})
      : plan_(plan),
        num_bytes_(num_bytes),
        executor_(std::make_unique<Executor>(plan, std::move(channels), std::move(ranks), options)) {
    for (int32_t op = 0; op < plan_->num_ops(); ++op) {
      for (const int32_t dependency : plan_->deps_of(op)) {
        if (lane_of(plan_->ops[op].kind) == LaneKind::SEND) sends_[dependency] = op;
        if (lane_of(plan_->ops[op].kind) == LaneKind::COMPUTE) reads_[op] = dependency;
      }
    }
  }

  void step(int64_t step) {
    step_ = step;
    executor_->step(step, *this);
  }

  void run(size_t index) override {
    const int32_t op = executor_->compute_ops()[index];
    if (const auto read = reads_.find(op); read != reads_.end()) {
      const Received received = executor_->received(read->second);
      const std::vector<std::byte> expected = message(read->second - 1);
      EXPECT(received.num_bytes == expected.size());
      EXPECT(std::memcmp(received.data, expected.data(), expected.size()) == 0);
      EXPECT(received.header.size() == sizeof step_);
      EXPECT(std::memcmp(received.header.data(), &step_, sizeof step_) == 0);
    }
    if (plan_->text(op) == fail_at) throw std::runtime_error("boom");
    if (plan_->text(op) == wait_at) usleep(200'000);
    if (const auto send = sends_.find(op); send != sends_.end()) {
      sent_[send->second] = message(send->second);
      const Segment segment{sent_[send->second].data(), sent_[send->second].size()};
      executor_->post(send->second, {&segment, 1}, std::as_bytes(std::span(&step_, 1)));
    }
    ++calls;
  }
  std::string what_was_thrown() override { return "boom"; }
  void check_signals() override { ++signal_checks; }

  Executor& executor() { return *executor_; }
  int calls = 0;
  int signal_checks = 0;
  std::string fail_at;
  std::string wait_at;

 private:
  std::vector<std::byte> message(int32_t send) const {
    return std::vector<std::byte>(num_bytes_, static_cast<std::byte>(send * 7 + step_));
  }

  std::shared_ptr<const Plan> plan_;
  size_t num_bytes_;
  int64_t step_ = 0;
  std::map<int32_t, int32_t> sends_, reads_;
  std::map<int32_t, std::vector<std::byte>> sent_;
  std::unique_ptr<Executor> executor_;  // first to go: its threads read sent_
};

void local(size_t num_bytes, int64_t spin_ns) {
  const auto plan = make_plan(3, 5);
  Checking host(plan, Channels::local(Topology::of(*plan)), {0, 1, 2}, num_bytes,
                {.spin_ns = spin_ns, .timeout_ns = 20'000'000'000});
  for (int step = 0; step < 30; ++step) host.step(step);
  EXPECT(host.calls == 30 * 2 * 3 * 5);
  EXPECT(host.executor().trace().size() == static_cast<size_t>(plan->num_ops()));
}

std::string unique_session(const char* name) { return std::string(name) + std::to_string(getpid()); }

// One thread per rank, as if each were a process.
template <class Body>
void over_shared_memory(int32_t num_ranks, const std::string& session, const Body& body) {
  const auto plan = make_plan(num_ranks, 5);
  std::vector<std::thread> ranks;
  for (int32_t rank = 0; rank < num_ranks; ++rank) {
    ranks.emplace_back([&, rank] { body(rank, plan, Channels::shm(Topology::of(*plan), rank, session, 20'000)); });
  }
  for (std::thread& thread : ranks) thread.join();
}

void shared(size_t num_bytes) {
  over_shared_memory(3, unique_session("shared"), [&](int32_t rank, const auto& plan, const auto& channels) {
    Checking host(plan, channels, {rank}, num_bytes);
    for (int step = 0; step < 20; ++step) host.step(step);
    channels->close();
  });
}

void a_failure_ends_every_rank() {
  over_shared_memory(3, unique_session("failure"), [](int32_t rank, const auto& plan, const auto& channels) {
    Checking host(plan, channels, {rank}, 1'000'000);
    host.step(0);
    if (rank == 1) host.fail_at = "1F3";
    const int64_t begin = now_ns();
    if (rank == 1) {
      EXPECT_THROWS(std::runtime_error, host.step(1), "boom");
    } else {
      const PeerLost lost = EXPECT_THROWS(PeerLost, host.step(1), "rank 1 failed at 1F3: boom");
      EXPECT(lost.context().rank == 1);
      EXPECT(lost.context().step == 1);
      EXPECT(!lost.context().op.empty());
    }
    EXPECT(now_ns() - begin < 5'000'000'000);
    EXPECT_THROWS(Error, host.step(2), "no step can follow a failure");
  });
}

void a_rank_that_closes_is_missed() {
  over_shared_memory(2, unique_session("leave"), [](int32_t rank, const auto& plan, const auto& channels) {
    Checking host(plan, channels, {rank}, 10);
    host.step(0);
    if (rank == 0) {
      EXPECT_THROWS(PeerLost, host.step(1), "rank 1 left");
    } else {
      channels->close();
      EXPECT_THROWS(Error, host.step(1), "the channels were closed");
    }
  });
}

void waiting_looks_at_signals_and_the_clock() {
  over_shared_memory(2, unique_session("slow"), [](int32_t rank, const auto& plan, const auto& channels) {
    Checking host(plan, channels, {rank}, 10, {.spin_ns = 0, .timeout_ns = 20'000'000'000});
    if (rank == 1) host.wait_at = "1B0";
    host.step(0);
    if (rank == 0) EXPECT(host.signal_checks >= 2);
  });
  over_shared_memory(2, unique_session("late"), [](int32_t rank, const auto& plan, const auto& channels) {
    Checking host(plan, channels, {rank}, 10, {.spin_ns = 0, .timeout_ns = 60'000'000});
    if (rank == 1) {
      host.wait_at = "1B0";
      EXPECT_THROWS(PeerLost, host.step(0), "rank 0 waited 60 ms for 0RECV_B0");
    } else {
      const LaneTimeout late = EXPECT_THROWS(LaneTimeout, host.step(0), "rank 0 waited 60 ms for 0RECV_B0");
      EXPECT(late.context().op == "0RECV_B0");
    }
  });
}

void abort_ends_a_wait_at_once() {
  const auto plan = make_plan(2, 3);
  const std::string session = unique_session("abort");
  std::atomic<bool> aborted{false};
  std::thread other([&] {  // is there, but never steps
    const auto channels = Channels::shm(Topology::of(*plan), 1, session, 20'000);
    while (!aborted) usleep(1000);
    EXPECT(channels->failure().raised() || (usleep(200'000), channels->failure().raised()));
  });
  const auto channels = Channels::shm(Topology::of(*plan), 0, session, 20'000);
  Checking host(plan, channels, {0}, 10);
  std::thread aborter([&] {
    while (host.executor().status().find("waits for 0RECV_B0") == std::string::npos) usleep(1000);
    host.executor().abort("enough");
    aborted = true;
  });
  EXPECT_THROWS(Error, host.step(0), "rank 0 was aborted: enough");
  aborter.join();
  other.join();
}

void plans_that_the_host_cannot_run_are_refused() {
  const auto refuse = [](auto change, const char* part) {
    Plan plan = HandPlan::chain(2, 2);
    change(plan);
    const auto shared = std::make_shared<const Plan>(plan);
    EXPECT_THROWS(PlanError, Executor(shared, Channels::local(Topology::of(*shared)), {0, 1}, ExecutorOptions{}), part);
  };
  const auto dependency_of = [](Plan& plan, const char* text) -> int32_t& {
    return plan.deps[plan.dep_offsets[HandPlan::find(plan, text)]];
  };
  refuse([&](Plan& plan) { dependency_of(plan, "1F1") = HandPlan::find(plan, "1SEND_B0"); },
         "only a receive can wait for a send");
  refuse([&](Plan& plan) { dependency_of(plan, "1SEND_B1") = HandPlan::find(plan, "1RECV_F0"); },
         "a send can only wait for compute ops");
  refuse([](Plan& plan) { plan.slots.clear(), plan.op_slot.assign(plan.ops.size(), -1); }, "has no slot");
  refuse(
      [](Plan& plan) {
        const int32_t send = HandPlan::find(plan, "0SEND_F1");
        plan.lane_ops[plan.op_lane[send]].pop_back();
      },
      "sends 1 messages to rank 1, which receives 2");
}

}  // namespace

int main() {
  local(100, 0);
  local(100, 20'000);
  local(600'000, 0);
  shared(100);
  shared(600'000);
  a_failure_ends_every_rank();
  a_rank_that_closes_is_missed();
  waiting_looks_at_signals_and_the_clock();
  abort_ends_a_wait_at_once();
  plans_that_the_host_cannot_run_are_refused();
}
