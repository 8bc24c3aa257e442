#include "sim/idle.h"

#include <algorithm>
#include <array>
#include <limits>

namespace pipert {

Window window_of(const Plan& plan, std::span<const double> start, std::span<const double> end) {
  Window window{std::numeric_limits<double>::infinity(), 0};
  for (size_t lane = 0; lane < plan.lanes.size(); ++lane) {
    const LaneKind kind = plan.lanes[lane].kind;
    if (kind == LaneKind::SEND || kind == LaneKind::RECV || plan.lane_ops[lane].empty()) continue;
    window.first = std::min(window.first, start[plan.lane_ops[lane].front()]);
    window.last = std::max(window.last, end[plan.lane_ops[lane].back()]);
  }
  return window;
}

Gap explain_gap(const Plan& plan, std::span<const double> end, int32_t op, double idle_from, double idle_to) {
  if (idle_to <= idle_from) return {};
  struct Wait {
    double begin;  // what is to arrive has been made
    double end;    // and has arrived
  };
  std::array<Wait, 4> waits;  // an overlapped pair can wait for two inputs
  size_t num_waits = 0;
  for (const int32_t dep : plan.deps_of(op)) {
    if (num_waits == waits.size()) break;
    // Of a transfer what its SEND waits for, of a meeting what any of its ranks does.
    const Unit unit = plan.unit_of(dep);
    const int32_t num_makers = is_meeting(plan.ops[dep].kind) ? unit.count : 1;
    double made = idle_from;
    for (int32_t maker = unit.first; maker < unit.first + num_makers; ++maker)
      for (const int32_t source : plan.deps_of(maker)) made = std::max(made, end[source]);
    waits[num_waits++] = {std::min(made, idle_to), std::clamp(end[dep], idle_from, idle_to)};
  }
  const auto begin = waits.begin(), stop = begin + num_waits;
  // What arrived last was waited for, and the rest until the start went into noticing it.
  const auto last = std::max_element(begin, stop, [](const Wait& a, const Wait& b) { return a.end < b.end; });
  if (last == stop || last->end <= idle_from) return {.overhead = idle_to - idle_from};
  last->end = idle_to;
  std::sort(begin, stop, [](const Wait& a, const Wait& b) { return a.begin < b.begin; });
  Gap gap;
  double covered_to = idle_from;
  for (auto wait = begin; wait != stop; ++wait) {
    gap.communication += std::max(0.0, wait->end - std::max(covered_to, wait->begin));
    covered_to = std::max(covered_to, wait->end);
  }
  gap.dependency = idle_to - idle_from - gap.communication;
  return gap;
}

}  // namespace pipert
