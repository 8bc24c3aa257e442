#include "sim/explain.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "sim/idle.h"

namespace pipert {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

class Explainer {
 public:
  Explainer(const Plan& plan, std::span<const double> start, std::span<const double> end)
      : plan_(plan), start_(start), end_(end), window_(window_of(plan, start, end)) {}

  std::vector<IdleTimes> idle_times() const {
    std::vector<IdleTimes> ranks(plan_.num_ranks);
    for (size_t lane = 0; lane < plan_.lanes.size(); ++lane) {
      const std::vector<int32_t>& ops = plan_.lane_ops[lane];
      if (plan_.lanes[lane].kind != LaneKind::COMPUTE) continue;
      IdleTimes& rank = ranks[plan_.lanes[lane].rank];
      rank.drain = window_.last - (ops.empty() ? window_.first : end_[ops.back()]);
      const auto [warm, draining] = phases(ops);
      double idle_from = window_.first;
      for (size_t i = 0; i < ops.size(); ++i) {
        const Gap gap = explain_gap(plan_, end_, ops[i], idle_from, start_[ops[i]]);
        (i <= warm ? rank.warm_up : i < draining ? rank.dependency : rank.drain) += gap.dependency;
        rank.communication += gap.communication;
        rank.overhead += gap.overhead;
        idle_from = end_[ops[i]];
      }
    }
    return ranks;
  }

  std::vector<PathStep> critical_path() const {
    int32_t op = -1;
    for (int32_t other = 0; other < plan_.num_ops(); ++other) {
      if (counts(other) && (op < 0 || end_[other] > end_[op])) op = other;
    }
    std::vector<PathStep> path;
    while (op >= 0) {
      const int32_t before = followed(op);
      path.push_back({op, start_[op] - (before < 0 ? window_.first : end_[before])});
      op = before;
    }
    std::reverse(path.begin(), path.end());
    return path;
  }

  std::vector<double> slack() const {
    const int32_t num_ops = plan_.num_ops();
    std::vector<double> latest_end(num_ops, kNever), slack(num_ops);
    for (int32_t op = num_ops - 1; op >= 0; --op) {
      if (counts(op)) latest_end[op] = std::min(latest_end[op], window_.last);
      const Unit unit = plan_.unit_of(op);
      if (op != unit.first) continue;  // with the first
      slack[op] = latest_end[op] - end_[op];
      for (int32_t row = op + 1; row < op + unit.count; ++row)
        slack[op] = std::min(slack[op], latest_end[row] - end_[row]);
      std::fill_n(slack.begin() + op, unit.count, slack[op]);
      const int32_t before = followed(op);
      if (before < 0) continue;
      const double latest_before = end_[before] + slack[op];  // the op's own lag after it stays as it is
      for_each_before(op, [&](int32_t other) { latest_end[other] = std::min(latest_end[other], latest_before); });
    }
    return slack;
  }

 private:
  // Of a rank's compute ops, where its first backward stands, and what follows its last forward.
  std::pair<size_t, size_t> phases(const std::vector<int32_t>& ops) const {
    const auto has = [&](int32_t op, auto... kinds) {
      const auto parts = plan_.ops[op].compute_parts();
      return std::any_of(parts.begin(), parts.end(), [&](const auto& part) { return ((part.kind == kinds) || ...); });
    };
    const auto backward =
        std::find_if(ops.begin(), ops.end(), [&](int32_t op) { return has(op, OpKind::BACKWARD, OpKind::INPUT_GRAD); });
    if (backward == ops.end()) return {0, ops.size()};
    const auto forward = std::find_if(ops.rbegin(), ops.rend(), [&](int32_t op) { return has(op, OpKind::FORWARD); });
    return {backward - ops.begin(), ops.rend() - forward};
  }

  bool is_send(int32_t op) const { return plan_.lane_of_op(op).kind == LaneKind::SEND; }
  bool is_recv(int32_t op) const { return plan_.lane_of_op(op).kind == LaneKind::RECV; }
  // Whether its end counts for the end of the step.
  bool counts(int32_t op) const { return !is_send(op) && !is_recv(op); }

  // What must have ended before an op starts: what its lane ran before it, then its dependencies. Of a transfer or a
  // meeting, given any of its rows, those of all, but no RECV before, which may still be on its way.
  template <class Visit>
  void for_each_before(int32_t op, Visit visit) const {
    const Unit unit = plan_.unit_of(op);
    for (int32_t row = unit.first; row < unit.first + unit.count; ++row) {
      const int32_t position = plan_.lane_position[row];
      if (position > 0 && !is_recv(row)) visit(plan_.lane_ops[plan_.op_lane[row]][position - 1]);
      for (const int32_t dep : plan_.deps_of(row)) visit(dep);
    }
  }

  // The last to end of those; -1: there are none.
  int32_t followed(int32_t op) const {
    int32_t last = -1;
    for_each_before(op, [&](int32_t other) {
      if (last < 0 || end_[other] > end_[last]) last = other;
    });
    return last;
  }

  const Plan& plan_;
  std::span<const double> start_, end_;
  Window window_;
};

}  // namespace

Explanation explain(const Plan& plan, std::span<const double> start, std::span<const double> end) {
  const Explainer explainer(plan, start, end);
  return {explainer.idle_times(), explainer.critical_path(), explainer.slack()};
}

}  // namespace pipert
