#include "sim/clock.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <queue>
#include <utility>

#include "core/error.h"

namespace pipert {
namespace {

// Enough cores for every rank. Dependencies point to smaller rows, so one pass over the rows meets every end before
// it is needed; a SEND's row is followed by its RECV's, a meeting's rows by each other.
Timeline run_in_row_order(const Plan& plan, const OpTimes& times) {
  const int32_t num_ops = plan.num_ops();
  Timeline timeline{std::vector<double>(num_ops), std::vector<double>(num_ops)};
  std::vector<double> lane_free(plan.lanes.size(), 0.0);
  const auto latest_dep = [&](int32_t op, double time) {
    for (const int32_t dep : plan.deps_of(op)) time = std::max(time, timeline.end[dep]);
    return time;
  };
  for (int32_t op = 0; op < num_ops; ++op) {
    if (is_meeting(plan.ops[op].kind)) {
      const Unit unit = plan.unit_of(op);
      double start = 0;
      for (int32_t row = op; row < op + unit.count; ++row)
        start = std::max(start, latest_dep(row, lane_free[plan.op_lane[row]]));
      for (int32_t row = op; row < op + unit.count; ++row) {
        timeline.start[row] = start;
        timeline.end[row] = lane_free[plan.op_lane[row]] = start + times.local(op);
      }
      op += unit.count - 1;
      continue;
    }
    double& free_at = lane_free[plan.op_lane[op]];
    const double ready = latest_dep(op, free_at);
    if (plan.lane_of_op(op).kind != LaneKind::SEND) {
      timeline.start[op] = ready;
      timeline.end[op] = free_at = ready + times.local(op);
      continue;
    }
    // The SEND's lane and the RECV's are the two ends of one edge and are always equally far.
    const int32_t recv = op + 1;
    const double start = latest_dep(recv, ready);
    const auto [latency, occupancy] = times.transfer(op);
    free_at = start + occupancy;
    timeline.start[op] = timeline.start[recv] = start;
    timeline.end[op] = free_at;
    timeline.end[recv] = free_at + latency;
    op = recv;
  }
  return timeline;
}

// Fewer cores than ranks: fluid processor sharing, event by event. All running compute ops progress at one common rate,
// so each is given the reading of a shared progress meter at which it will be done; transfers and collectives live on
// the real clock.
class SharedCores {
 public:
  SharedCores(const Plan& plan, const OpTimes& times, double host_cores)
      : plan_(plan),
        times_(times),
        host_cores_(host_cores),
        timeline_{std::vector<double>(plan.num_ops()), std::vector<double>(plan.num_ops())},
        edge_free_(plan.lanes.size(), 0.0) {
    link();
  }

  Timeline run() {
    for (int32_t op = 0; op < plan_.num_ops(); ++op) {
      if (starts_with(op) == op && waits_for_[op] == 0) ready_.push_back(op);
    }
    int32_t num_ended = 0;
    for (start_ready(); !running_.empty() || !in_flight_.empty(); start_ready()) {
      const double rate = std::min(1.0, host_cores_ / static_cast<double>(std::max<size_t>(1, running_.size())));
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
  bool is_send(int32_t op) const { return plan_.lane_of_op(op).kind == LaneKind::SEND; }
  bool is_recv(int32_t op) const { return plan_.lane_of_op(op).kind == LaneKind::RECV; }
  // A transfer starts as one, and then counts as its SEND; a meeting as its first row.
  int32_t starts_with(int32_t op) const { return plan_.unit_of(op).first; }
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
      if (!is_recv(op) && plan_.lane_position[op] > 0) ++waits_for_[starts_with(op)];
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

  // The next op of a lane waits for this one's end; the next transfer on an edge only for this one's start, and then
  // for the edge to be free.
  void release(int32_t op) {
    if (!is_send(op) && !is_recv(op)) release_lane(op);
    for (int32_t i = waiter_offsets_[op]; i < waiter_offsets_[op + 1]; ++i) satisfy_one(waiters_[i]);
  }

  void release_lane(int32_t op) {
    if (const int32_t next = next_in_lane(op); next >= 0) satisfy_one(starts_with(next));
  }

  void start_ready() {
    while (!ready_.empty()) {
      const int32_t op = ready_.back();
      ready_.pop_back();
      if (is_compute(op)) {
        timeline_.start[op] = now_;
        running_.emplace(progress_ + times_.local(op), op);
        continue;
      }
      if (!is_send(op)) {
        for (int32_t row = op; row < op + plan_.unit_of(op).count; ++row) {
          timeline_.start[row] = now_;
          timeline_.end[row] = now_ + times_.local(op);
          in_flight_.emplace(timeline_.end[row], row);
        }
        continue;
      }
      const int32_t recv = plan_.partner_of(op);
      double& edge_free = edge_free_[plan_.op_lane[op]];
      timeline_.start[op] = timeline_.start[recv] = std::max(now_, edge_free);
      const auto [latency, occupancy] = times_.transfer(op);
      timeline_.end[op] = edge_free = timeline_.start[op] + occupancy;
      timeline_.end[recv] = edge_free + latency;
      in_flight_.emplace(timeline_.end[op], op);
      in_flight_.emplace(timeline_.end[recv], recv);
      release_lane(op);
    }
  }

  const Plan& plan_;
  const OpTimes& times_;
  double host_cores_;
  Timeline timeline_;
  std::vector<double> edge_free_;  // per send lane
  std::vector<int32_t> waits_for_;
  std::vector<int32_t> waiter_offsets_, waiters_;
  std::vector<int32_t> ready_;
  EventQueue running_;    // by the progress at which they are done
  EventQueue in_flight_;  // SENDs, RECVs and collectives, by the time at which they end
  double now_ = 0;
  double progress_ = 0;  // compute time that an op running since 0 would have got
};

}  // namespace

Timeline simulate(const Plan& plan, const ClockCosts& costs) {
  const OpTimes times(plan, costs);
  if (costs.host_cores > 0 && costs.host_cores < plan.num_ranks) {
    return SharedCores(plan, times, costs.host_cores).run();
  }
  return run_in_row_order(plan, times);
}

}  // namespace pipert
