#include "plan/sent_before.h"

#include <algorithm>
#include <span>

namespace pipert {
namespace {

// Per op, for each SEND lane of one rank: how many of its messages have been received when the op begins. Ops are
// visited in the global order, which respects everything that an op waits for.
class Clocks {
 public:
  Clocks(const Plan& plan, int32_t rank) : plan_(plan), clock_lane_(plan.lanes.size(), -1) {
    for (size_t lane = 0; lane < plan.lanes.size(); ++lane) {
      const bool sends = plan.lanes[lane].kind == LaneKind::SEND && plan.lanes[lane].rank == rank;
      if (sends) clock_lane_[lane] = num_lanes_++;
    }
    counts_.assign(static_cast<size_t>(plan.num_ops()) * num_lanes_, 0);
    last_on_lane_.assign(plan.lanes.size(), -1);
    for (int32_t op = 0; op < plan.num_ops(); ++op) visit(op);
  }

  int32_t sent(int32_t op, int32_t lane) const {
    return counts_[static_cast<size_t>(op) * num_lanes_ + clock_lane_[lane]];
  }

 private:
  std::span<int32_t> counts(int32_t op) {
    return std::span(counts_).subspan(static_cast<size_t>(op) * num_lanes_, num_lanes_);
  }

  void visit(int32_t op) {
    const int32_t lane = plan_.op_lane[op];
    if (last_on_lane_[lane] >= 0) follow(op, last_on_lane_[lane]);
    last_on_lane_[lane] = op;
    for (const int32_t dependency : plan_.deps_of(op)) follow(op, dependency);
    if (lane_of(plan_.ops[op].kind) == LaneKind::RECV) follow(op, op - 1);
  }

  // `op` begins after `before` has ended; a RECV, which ends after its SEND, counts as ending where it begins.
  void follow(int32_t op, int32_t before) {
    const std::span<int32_t> mine = counts(op);
    const std::span<int32_t> theirs = counts(before);
    for (size_t lane = 0; lane < mine.size(); ++lane) mine[lane] = std::max(mine[lane], theirs[lane]);
    const int32_t lane = clock_lane_[plan_.op_lane[before]];
    if (lane >= 0) mine[lane] = std::max(mine[lane], plan_.lane_position[before] + 1);
  }

  const Plan& plan_;
  std::vector<int32_t> clock_lane_;  // per lane: where it stands in a clock
  int32_t num_lanes_ = 0;
  std::vector<int32_t> counts_;
  std::vector<int32_t> last_on_lane_;
};

}  // namespace

std::vector<int32_t> sent_before(const Plan& plan, int32_t rank) {
  const Clocks clocks(plan, rank);
  std::vector<int32_t> result(plan.num_ops(), 0);
  for (int32_t op = 0; op < plan.num_ops(); ++op) {
    const int32_t lane = plan.op_lane[op];
    if (plan.lanes[lane].rank != rank || plan.lanes[lane].kind != LaneKind::SEND || plan.deps_of(op).empty()) continue;
    result[op] = clocks.sent(*std::ranges::min_element(plan.deps_of(op)), lane);
  }
  return result;
}

}  // namespace pipert
