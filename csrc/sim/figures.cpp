#include "sim/figures.h"

#include <algorithm>

#include "sim/idle.h"

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

MemoryChange change_of(const Op& op, const Lives& lives, const Memory& memory) {
  MemoryChange change;
  if (op.kind == OpKind::SCORE) change.at_start += memory.shard;
  if (op.kind == (lives.has_backward ? OpKind::SCORE_W : OpKind::SCORE)) change.at_end -= memory.shard;
  for (const auto& [kind, stage, microbatch] : op.compute_parts()) {
    const auto [held, held_after_i, held_after_w] = memory.stages[stage];
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

}  // namespace

Figures measure(const Plan& plan, std::span<const double> start, std::span<const double> end, const Memory& memory) {
  const Lives lives(plan);
  Figures figures;
  figures.ranks.resize(plan.num_ranks);
  const auto [first, last] = window_of(plan, start, end);
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
      rank.exposed_comm += explain_gap(plan, end, op, idle_from, start[op]).communication;
      idle_from = end[op];
    }
  }
  return figures;
}

}  // namespace pipert
