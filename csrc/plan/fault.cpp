#include "plan/fault.h"

#include "core/error.h"

namespace pipert {

std::string name_of(const Plan& plan, int32_t op) { return plan.text(op) + " (op " + std::to_string(op) + ")"; }

std::string name_of(const Lane& lane) {
  std::string name = "rank " + std::to_string(lane.rank) + "'s " + std::string(text_of(lane.kind)) + " lane";
  if (lane.kind == LaneKind::SEND) name += " to rank " + std::to_string(lane.peer);
  if (lane.kind == LaneKind::RECV) name += " from rank " + std::to_string(lane.peer);
  return name;
}

void fail(int32_t rank, const std::string& op, const std::string& what) {
  throw PlanError("rank " + std::to_string(rank) + ": " + what, {rank, op, {}});
}

void fail(const Plan& plan, int32_t op, const std::string& expected, const std::string& found) {
  fail(plan.rank_of(op), plan.text(op), name_of(plan, op) + ": expected " + expected + ", found " + found);
}

void check_waits(const Plan& plan, int32_t op, int32_t needed, const char* why) {
  std::string found;
  for (const int32_t dep : plan.deps_of(op)) {
    if (plan.op_lane[dep] == plan.op_lane[needed] && dep >= needed) return;
    found += (found.empty() ? "" : ", ") + name_of(plan, dep);
  }
  fail(plan, op, "a dependency on " + name_of(plan, needed) + ", " + why, found.empty() ? "none" : found);
}

}  // namespace pipert
