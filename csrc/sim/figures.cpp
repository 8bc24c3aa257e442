#include "sim/figures.h"

#include <algorithm>
#include <array>
#include <limits>

namespace pipert {
namespace {

// Which (stage, microbatch)es are recomputed, and whether there is a backward at all.
struct Lives {
  explicit Lives(const Plan& plan)
      : num_microbatches(plan.num_microbatches), recomputed(size_t(plan.num_stages) * plan.num_microbatches, false) {
    for (const Op& op : plan.ops) {
      for (const auto& [kind, stage, microbatch] : op.compute_parts()) {
        if (kind == OpKind::RECOMPUTE) recomputed[index(stage, microbatch)] = true;
        if (kind == OpKind::BACKWARD || kind == OpKind::INPUT_GRAD) has_backward = true;
      }
    }
  }
  size_t index(int32_t stage, int32_t microbatch) const { return size_t(stage) * num_microbatches + microbatch; }

  int32_t num_microbatches;
  std::vector<bool> recomputed;
  bool has_backward = false;
};

struct MemoryChange {
  double at_start = 0;
  double at_end = 0;
};

MemoryChange change_of(const Op& op, const Lives& lives, std::span<const StageMemory> memory) {
  MemoryChange change;
  for (const auto& [kind, stage, microbatch] : op.compute_parts()) {
    const auto [held, held_after_i, held_after_w] = memory[stage];
    switch (kind) {
      case OpKind::FORWARD:
        if (lives.recomputed[lives.index(stage, microbatch)]) break;
        change.at_start += held;
        if (!lives.has_backward) change.at_end -= held;
        break;
      case OpKind::RECOMPUTE:
        change.at_start += held;
        break;
      case OpKind::INPUT_GRAD:
        change.at_end -= held - held_after_i;
        break;
      case OpKind::WEIGHT_GRAD:
        change.at_end -= held_after_i - held_after_w;
        break;
      case OpKind::BACKWARD:
        change.at_end -= held - held_after_w;
        break;
      default:
        break;
    }
  }
  return change;
}

struct Interval {
  double begin;
  double end;
  double length() const { return std::max(0.0, end - begin); }
};

// How long between idle_from and idle_to, the start of the op, its inputs were on the way: from the end of the op that
// made one to the end of its RECV. An overlapped pair can wait for two. If the last RECV ended while the rank was idle,
// then the op was waiting for it, and the rest until its start went into noticing: that counts too.
double exposed_wait(const Plan& plan, std::span<const double> end, int32_t op, double idle_from, double idle_to) {
  std::array<Interval, 2> waits{Interval{idle_from, idle_from}, Interval{idle_from, idle_from}};
  size_t num_waits = 0;
  for (const int32_t dep : plan.deps_of(op)) {
    if (plan.lane_of_op(dep).kind != LaneKind::RECV || num_waits == waits.size()) continue;
    double made = idle_from;
    for (const int32_t source : plan.deps_of(plan.partner_of(dep))) made = std::max(made, end[source]);
    waits[num_waits++] = {std::min(made, idle_to), std::clamp(end[dep], idle_from, idle_to)};
  }
  Interval& last = waits[0].end >= waits[1].end ? waits[0] : waits[1];
  if (last.end > idle_from) last.end = idle_to;
  const Interval both{std::max(waits[0].begin, waits[1].begin), std::min(waits[0].end, waits[1].end)};
  return waits[0].length() + waits[1].length() - both.length();
}

}  // namespace

Figures measure(const Plan& plan, std::span<const double> start, std::span<const double> end,
                std::span<const StageMemory> memory) {
  const Lives lives(plan);
  Figures figures;
  figures.ranks.resize(plan.num_ranks);
  double first = std::numeric_limits<double>::infinity(), last = 0;
  for (size_t lane = 0; lane < plan.lanes.size(); ++lane) {
    if (plan.lanes[lane].kind == LaneKind::COMPUTE && !plan.lane_ops[lane].empty()) {
      first = std::min(first, start[plan.lane_ops[lane].front()]);
      last = std::max(last, end[plan.lane_ops[lane].back()]);
    }
  }
  figures.makespan = last - first;
  for (size_t lane = 0; lane < plan.lanes.size(); ++lane) {
    const std::vector<int32_t>& ops = plan.lane_ops[lane];
    if (plan.lanes[lane].kind != LaneKind::COMPUTE || ops.empty()) continue;
    RankFigures& rank = figures.ranks[plan.lanes[lane].rank];
    rank.span = end[ops.back()] - start[ops.front()];
    double held = 0, idle_from = first;
    for (const int32_t op : ops) {
      const MemoryChange change = change_of(plan.ops[op], lives, memory);
      held += change.at_start;
      rank.peak_activation = std::max(rank.peak_activation, held);
      held += change.at_end;
      rank.compute_time += end[op] - start[op];
      rank.exposed_comm += exposed_wait(plan, end, op, idle_from, start[op]);
      idle_from = end[op];
    }
  }
  return figures;
}

}  // namespace pipert
