#include "plan/shards.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "plan/fault.h"
#include "plan/waits.h"

namespace pipert {
namespace {

using Place = std::pair<int32_t, int32_t>;  // rank, stage

// A stage on one of its ranks, from row to row.
struct State {
  int32_t unshard = -1;  // the op since which it is whole; -1 while it is sharded
  int32_t last_compute = -1;
  int32_t last_grad = -1;    // the last op that added to its gradients
  int32_t last_reduce = -1;  // the last REDUCE_GRAD
};

bool is_collective_of_stage(const Op& op) { return scope_of(op.kind) == Scope::STAGE; }

class ShardCheck {
 public:
  explicit ShardCheck(const Plan& plan) : plan_(plan), waits_(plan) {
    for (const std::vector<int32_t>& path : plan.paths)
      for (int32_t stage = 0; stage < plan.num_stages; ++stage) holders_.emplace_back(path[stage], stage);
    std::sort(holders_.begin(), holders_.end());
    for (int32_t op = 0; op < plan.num_ops(); ++op)
      if (plan.ops[op].kind == OpKind::UNSHARD) sharded_.emplace(plan.rank_of(op), plan.ops[op].stage);
  }

  void run() {
    for (int32_t op = 0; op < plan_.num_ops(); ++op) {
      waits_.take(op);
      if (is_collective_of_stage(plan_.ops[op])) take_collective(op);
      for (const ComputePart& part : plan_.ops[op].compute_parts()) take_compute(op, part);
    }
    for (const auto& [place, state] : states_)
      if (state.last_reduce >= 0 && state.last_grad > state.last_reduce)
        fail(plan_, state.last_grad, to_text(OpKind::REDUCE_GRAD, place.second, -1) + " after it", "none");
  }

 private:
  void take_collective(int32_t op) {
    const Place place{plan_.rank_of(op), plan_.ops[op].stage};
    if (!std::binary_search(holders_.begin(), holders_.end(), place))
      fail(plan_, op, "it on a rank that holds its stage", "it on another");
    State& state = states_[place];
    switch (plan_.ops[op].kind) {
      case OpKind::UNSHARD:
        if (state.unshard >= 0) fail(plan_, op, "its stage sharded", name_of(plan_, state.unshard) + " before it");
        state.unshard = op;
        break;
      case OpKind::RESHARD:
        if (state.unshard < 0) fail(plan_, op, to_text(OpKind::UNSHARD, place.second, -1) + " before it", "none");
        if (state.last_compute > state.unshard) waits_.require(op, state.last_compute, "the last to use what it frees");
        state.unshard = -1;
        break;
      default:
        if (state.last_grad <= state.last_reduce) fail(plan_, op, "a B or a W of its stage before it", "none");
        waits_.require(op, state.last_grad, "the last to add to what it reduces");
        state.last_reduce = op;
    }
  }

  void take_compute(int32_t op, const ComputePart& part) {
    const Place place{plan_.rank_of(op), part.stage};
    State& state = states_[place];
    if (sharded_.contains(place)) {
      if (state.unshard < 0) fail(plan_, op, to_text(OpKind::UNSHARD, part.stage, -1) + " before it", "none");
      waits_.require(op, state.unshard, "which makes its stage whole");
    }
    state.last_compute = op;
    if (part.kind == OpKind::BACKWARD || part.kind == OpKind::WEIGHT_GRAD) state.last_grad = op;
  }

  const Plan& plan_;
  std::vector<Place> holders_;  // sorted
  std::set<Place> sharded_;     // those with an UNSHARD
  std::map<Place, State> states_;
  Waits waits_;
};

}  // namespace

void check_shards(const Plan& plan) {
  if (std::any_of(plan.ops.begin(), plan.ops.end(), is_collective_of_stage)) ShardCheck(plan).run();
}

}  // namespace pipert
