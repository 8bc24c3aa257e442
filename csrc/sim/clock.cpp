#include "sim/clock.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <queue>
#include <string>
#include <utility>

#include "core/error.h"

namespace pipert {
namespace {

double compute_time(const std::vector<StageTimes>& stages, OpKind kind, int32_t stage) {
  const StageTimes& times = stages[stage];
  switch (kind) {
    case OpKind::FORWARD:
      return times.forward;
    case OpKind::BACKWARD:
      return times.backward;
    case OpKind::INPUT_GRAD:
      return times.input_grad;
    case OpKind::WEIGHT_GRAD:
      return times.weight_grad;
    case OpKind::RECOMPUTE:
      return times.recompute;
    default:
      throw Error("no cost is known for an op of this kind");
  }
}

double op_time(const ClockCosts& costs, const Op& op) {
  double total = 0;
  for (const ComputePart& part : op.compute_parts()) total += compute_time(costs.stages, part.kind, part.stage);
  return total;
}

// Enough cores for every rank. Dependencies point to smaller rows, so one pass over the rows meets every end before
// it is needed; a SEND's row is followed by its RECV's.
Timeline run_in_row_order(const Plan& plan, const ClockCosts& costs) {
  const int32_t num_ops = plan.num_ops();
  Timeline timeline{std::vector<double>(num_ops), std::vector<double>(num_ops)};
  std::vector<double> lane_free(plan.lanes.size(), 0.0);
  const auto latest_dep = [&](int32_t op, double time) {
    for (const int32_t dep : plan.deps_of(op)) time = std::max(time, timeline.end[dep]);
    return time;
  };
  for (int32_t op = 0; op < num_ops; ++op) {
    double& free_at = lane_free[plan.op_lane[op]];
    const double ready = latest_dep(op, free_at);
    if (plan.lane_of_op(op).kind == LaneKind::COMPUTE) {
      timeline.start[op] = ready;
      timeline.end[op] = free_at = ready + op_time(costs, plan.ops[op]);
      continue;
    }
    // The SEND's lane and the RECV's are the two ends of one edge and are always equally far.
    const int32_t recv = op + 1;
    const double start = latest_dep(recv, ready);
    free_at = start + costs.occupancy;
    timeline.start[op] = timeline.start[recv] = start;
    timeline.end[op] = free_at;
    timeline.end[recv] = free_at + costs.latency;
    op = recv;
  }
  return timeline;
}

// Fewer cores than ranks: fluid processor sharing, event by event. All running compute ops progress at one common rate,
// so each is given the reading of a shared progress meter at which it will be done; transfers live on the real clock.
class SharedCores {
 public:
  SharedCores(const Plan& plan, const ClockCosts& costs)
      : plan_(plan),
        costs_(costs),
        timeline_{std::vector<double>(plan.num_ops()), std::vector<double>(plan.num_ops())},
        edge_free_(plan.lanes.size(), 0.0) {
    link();
  }

  Timeline run() {
    for (int32_t op = 0; op < plan_.num_ops(); ++op) {
      if (!is_recv(op) && waits_for_[op] == 0) ready_.push_back(op);
    }
    int32_t num_ended = 0;
    for (start_ready(); !running_.empty() || !in_flight_.empty(); start_ready()) {
      const double rate = std::min(1.0, costs_.host_cores / static_cast<double>(std::max<size_t>(1, running_.size())));
      const double compute_done =
          running_.empty() ? kNever : now_ + std::max(0.0, running_.top().first - progress_) / rate;
      const double transfer_done = in_flight_.empty() ? kNever : in_flight_.top().first;
      if (compute_done <= transfer_done) {
        now_ = compute_done;
        progress_ = running_.top().first;
        const int32_t op = running_.top().second;
        running_.pop();
        timeline_.end[op] = now_;
        release(op);
      } else {
        progress_ += (transfer_done - now_) * rate;
        now_ = transfer_done;
        const int32_t op = in_flight_.top().second;
        in_flight_.pop();
        release(op);
      }
      ++num_ended;
    }
    PIPERT_CHECK(num_ended == plan_.num_ops(), "the simulated plan came to a halt");
    return std::move(timeline_);
  }

 private:
  using Event = std::pair<double, int32_t>;
  using EventQueue = std::priority_queue<Event, std::vector<Event>, std::greater<>>;
  static constexpr double kNever = std::numeric_limits<double>::infinity();

  bool is_compute(int32_t op) const { return plan_.lane_of_op(op).kind == LaneKind::COMPUTE; }
  bool is_recv(int32_t op) const { return plan_.lane_of_op(op).kind == LaneKind::RECV; }
  // A transfer starts as one, and then counts as its SEND.
  int32_t starts_with(int32_t op) const { return is_recv(op) ? plan_.partner_of(op) : op; }
  int32_t next_in_lane(int32_t op) const {
    const auto& ops = plan_.lane_ops[plan_.op_lane[op]];
    const size_t next = static_cast<size_t>(plan_.lane_position[op]) + 1;
    return next < ops.size() ? ops[next] : -1;
  }

  // For each op: how many it still waits for (the one before it in its lane counts), and which ops wait for its end.
  void link() {
    const int32_t num_ops = plan_.num_ops();
    waits_for_.assign(num_ops, 0);
    waiter_offsets_.assign(num_ops + 1, 0);
    for (int32_t op = 0; op < num_ops; ++op) {
      if (!is_recv(op) && plan_.lane_position[op] > 0) ++waits_for_[op];
      for (const int32_t dep : plan_.deps_of(op)) {
        ++waits_for_[starts_with(op)];
        ++waiter_offsets_[dep + 1];
      }
    }
    for (int32_t op = 0; op < num_ops; ++op) waiter_offsets_[op + 1] += waiter_offsets_[op];
    waiters_.resize(plan_.deps.size());
    std::vector<int32_t> fill(waiter_offsets_.begin(), waiter_offsets_.end() - 1);
    for (int32_t op = 0; op < num_ops; ++op) {
      for (const int32_t dep : plan_.deps_of(op)) waiters_[fill[dep]++] = starts_with(op);
    }
  }

  void satisfy_one(int32_t op) {
    if (--waits_for_[op] == 0) ready_.push_back(op);
  }

  // The next compute op waits for this one's end; the next transfer on an edge only for this one's start, and then for
  // the edge to be free.
  void release(int32_t op) {
    if (is_compute(op)) release_lane(op);
    for (int32_t i = waiter_offsets_[op]; i < waiter_offsets_[op + 1]; ++i) satisfy_one(waiters_[i]);
  }

  void release_lane(int32_t op) {
    if (const int32_t next = next_in_lane(op); next >= 0) satisfy_one(next);
  }

  void start_ready() {
    while (!ready_.empty()) {
      const int32_t op = ready_.back();
      ready_.pop_back();
      if (is_compute(op)) {
        timeline_.start[op] = now_;
        running_.emplace(progress_ + op_time(costs_, plan_.ops[op]), op);
        continue;
      }
      const int32_t recv = plan_.partner_of(op);
      double& edge_free = edge_free_[plan_.op_lane[op]];
      timeline_.start[op] = timeline_.start[recv] = std::max(now_, edge_free);
      timeline_.end[op] = edge_free = timeline_.start[op] + costs_.occupancy;
      timeline_.end[recv] = edge_free + costs_.latency;
      in_flight_.emplace(timeline_.end[op], op);
      in_flight_.emplace(timeline_.end[recv], recv);
      release_lane(op);
    }
  }

  const Plan& plan_;
  const ClockCosts& costs_;
  Timeline timeline_;
  std::vector<double> edge_free_;  // per send lane
  std::vector<int32_t> waits_for_;
  std::vector<int32_t> waiter_offsets_, waiters_;
  std::vector<int32_t> ready_;
  EventQueue running_;    // by the progress at which they are done
  EventQueue in_flight_;  // SENDs and RECVs, by the time at which they end
  double now_ = 0;
  double progress_ = 0;  // compute time that an op running since 0 would have got
};

}  // namespace

Timeline simulate(const Plan& plan, const ClockCosts& costs) {
  if (costs.stages.size() != static_cast<size_t>(plan.num_stages)) {
    throw ConfigError("costs are for " + std::to_string(costs.stages.size()) + " stages, but the plan has " +
                      std::to_string(plan.num_stages));
  }
  if (costs.host_cores > 0 && costs.host_cores < plan.num_ranks) return SharedCores(plan, costs).run();
  return run_in_row_order(plan, costs);
}

}  // namespace pipert
