// The judge of plans. Its proof that a plan cannot deadlock: the rows are one order of all ops in which every op comes
// after what it waits for, and a transfer is one step of both its ranks, a meeting one of all (adjacent rows). Whatever
// runs each rank's rows in this order, on any number of queues, always has a next op that can run. The rest of the
// checks say that what an op reads is there by then, by explicit dependencies and not by the luck of the order.
#include <algorithm>
#include <functional>
#include <queue>
#include <set>
#include <tuple>

#include "core/error.h"
#include "plan/fault.h"
#include "plan/plan.h"
#include "plan/post_validation.h"
#include "plan/shards.h"
#include "plan/vocabulary.h"
#include "plan/wait_cycle.h"
#include "plan/work_table.h"

namespace pipert {
namespace {

// Lanes: none twice, none between a rank and itself.
void check_lanes(const Plan& plan) {
  std::set<std::tuple<int32_t, LaneKind, int32_t>> seen;
  for (const Lane& lane : plan.lanes) {
    if (lane.rank == lane.peer) fail(lane.rank, "", "expected a peer on another rank, found " + name_of(lane));
    if (!seen.insert({lane.rank, lane.kind, lane.peer}).second)
      fail(lane.rank, "", "expected one lane of each kind and peer, found twice: " + name_of(lane));
  }
}

// The stage (or the rank) at the other end of a transfer; out of range at the ends.
int32_t other_stage(const Op& transfer) {
  using enum OpKind;
  const OpKind kind = transfer.kind;
  const bool next = kind == SEND_F || kind == RECV_B || kind == SEND_NORM || kind == RECV_TOTAL;
  return next ? transfer.stage + 1 : transfer.stage - 1;
}

// Of an op that is for a rank, whose number its text has in place of a stage's.
Lane expected_lane_of_rank(const Plan& plan, int32_t op) {
  const Op& the_op = plan.ops[op];
  const LaneKind kind = lane_of(the_op.kind);
  if (!is_transfer(the_op.kind)) return {the_op.stage, kind, -1};
  const int32_t peer = other_stage(the_op);
  if (peer < 0 || peer >= plan.num_ranks)
    fail(plan, op, "no transfer beyond the " + std::string(peer < 0 ? "first" : "last") + " rank", "one");
  return {the_op.stage, kind, peer};
}

Lane expected_lane(const Plan& plan, int32_t op) {
  const Op& the_op = plan.ops[op];
  const LaneKind kind = lane_of(the_op.kind);
  const bool any_rank = scope_of(the_op.kind) == Scope::STAGE || is_meeting(the_op.kind);  // that holds its stage
  if (any_rank) return {plan.rank_of(op), kind, -1};
  if (is_of_rank(the_op.kind)) return expected_lane_of_rank(plan, op);
  const int32_t rank = plan.rank_of(the_op.stage, the_op.microbatch);
  if (!is_transfer(the_op.kind)) return {rank, kind, -1};
  const int32_t other = other_stage(the_op);
  if (other < 0 || other >= plan.num_stages)
    fail(plan, op, "no transfer beyond the " + std::string(other < 0 ? "first" : "last") + " stage", "one");
  const int32_t peer = plan.rank_of(other, the_op.microbatch);
  if (peer == rank)
    fail(plan, op, "no transfer between stages of one rank",
         "one between stages " + std::to_string(the_op.stage) + " and " + std::to_string(other));
  return {rank, kind, peer};
}

// Every op is on the lane that its kind, its stage's rank and its peer ask for.
void check_places(const Plan& plan) {
  for (int32_t op = 0; op < plan.num_ops(); ++op) {
    const Lane expected = expected_lane(plan, op);
    if (plan.lane_of_op(op) != expected) fail(plan, op, name_of(expected), name_of(plan.lane_of_op(op)));
    for (const ComputePart& part : plan.ops[op].compute_parts())
      if (const int32_t rank = plan.rank_of(part.stage, part.microbatch); rank != expected.rank)
        fail(plan, op, "both parts on rank " + std::to_string(expected.rank),
             "stage " + std::to_string(part.stage) + " of rank " + std::to_string(rank));
  }
}

// One (stage, microbatch) of the plan, to check that its compute ops are complete and in order.
struct Cell {
  const Plan& plan;
  int32_t stage;
  int32_t microbatch;

  std::string text(OpKind kind) const { return to_text(kind, stage, microbatch); }
  [[noreturn]] void fail_missing(const std::string& expected, const std::string& found) const {
    fail(plan.rank_of(stage, microbatch), expected,
         "stage " + std::to_string(stage) + ", microbatch " + std::to_string(microbatch) + ": expected " + expected +
             ", found " + found);
  }
  // Places, -1 for ops that there are not.
  void check_order(OpKind first, int32_t first_place, OpKind second, int32_t second_place) const {
    if (first_place < 0 || second_place < 0 || first_place < second_place) return;
    fail(plan, second_place / 2, text(second) + " after " + text(first), name_of(plan, first_place / 2) + " later");
  }
};

void check_complete(const Cell& cell, const StageWork& work, bool forward_only) {
  if (work.forward < 0) cell.fail_missing(cell.text(OpKind::FORWARD), "none");
  if (forward_only) return;
  const bool halves = work.input_grad >= 0 || work.weight_grad >= 0;
  if (work.backward >= 0 ? !halves : work.input_grad >= 0 && work.weight_grad >= 0) return;
  std::string found;
  for (const auto& [kind, place] : {std::pair{OpKind::BACKWARD, work.backward},
                                    {OpKind::INPUT_GRAD, work.input_grad},
                                    {OpKind::WEIGHT_GRAD, work.weight_grad}})
    if (place >= 0) found += (found.empty() ? "" : " and ") + cell.text(kind);
  const std::string expected =
      cell.text(OpKind::BACKWARD) + ", or " + cell.text(OpKind::INPUT_GRAD) + " and " + cell.text(OpKind::WEIGHT_GRAD);
  cell.fail_missing(expected, found.empty() ? "none" : found);
}

void check_order(const Cell& cell, const StageWork& work) {
  using enum OpKind;
  const OpKind grad_kind = work.backward >= 0 ? BACKWARD : INPUT_GRAD;
  cell.check_order(FORWARD, work.forward, RECOMPUTE, work.recompute);
  cell.check_order(FORWARD, work.forward, grad_kind, work.grad_place());
  cell.check_order(RECOMPUTE, work.recompute, grad_kind, work.grad_place());
  cell.check_order(INPUT_GRAD, work.input_grad, WEIGHT_GRAD, work.weight_grad);
}

// Where two neighbouring stages share a rank, nothing but the order of its compute lane hands over between them.
void check_hand_over(const Plan& plan, const WorkTable& table, int32_t stage, int32_t microbatch) {
  if (stage + 1 == plan.num_stages || plan.rank_of(stage, microbatch) != plan.rank_of(stage + 1, microbatch)) return;
  const StageWork& work = table.at(stage, microbatch);
  const StageWork& next = table.at(stage + 1, microbatch);
  const auto check = [&](const char* what, int32_t producer, int32_t consumer) {
    if (producer < consumer) return;
    fail(plan, consumer / 2, std::string("its ") + what + " from an earlier op",
         name_of(plan, producer / 2) + (producer / 2 == consumer / 2 ? " itself" : " later"));
  };
  check("input", work.forward, next.forward);
  if (!table.forward_only()) check("gradient", next.grad_place(), work.grad_place());
}

void check_compute(const Plan& plan, const WorkTable& table) {
  for (int32_t stage = 0; stage < plan.num_stages; ++stage)
    for (int32_t microbatch = 0; microbatch < plan.num_microbatches; ++microbatch)
      check_complete({plan, stage, microbatch}, table.at(stage, microbatch), table.forward_only());
  for (int32_t stage = 0; stage < plan.num_stages; ++stage) {
    for (int32_t microbatch = 0; microbatch < plan.num_microbatches; ++microbatch) {
      check_order({plan, stage, microbatch}, table.at(stage, microbatch));
      check_hand_over(plan, table, stage, microbatch);
    }
  }
}

// The op that must stand in the next or the previous row.
Op expected_partner(const Op& op) {
  using enum OpKind;
  constexpr std::pair<OpKind, OpKind> pairs[] = {
      {SEND_F, RECV_F}, {SEND_B, RECV_B}, {SEND_NORM, RECV_NORM}, {SEND_TOTAL, RECV_TOTAL}};
  OpKind kind = op.kind;
  for (const auto& [send, recv] : pairs)
    if (op.kind == send || op.kind == recv) kind = op.kind == send ? recv : send;
  return make_op(kind, other_stage(op), op.microbatch);
}

// A SEND is followed by its RECV, a RECV preceded by its SEND.
void check_pairs(const Plan& plan) {
  for (int32_t op = 0; op < plan.num_ops(); ++op) {
    const int32_t partner = plan.partner_of(op);
    if (!is_transfer(plan.ops[op].kind)) continue;
    const std::string expected = to_text(expected_partner(plan.ops[op]));
    const std::string found = partner >= 0 && partner < plan.num_ops() ? plan.text(partner) : "nothing";
    if (found != expected) fail(plan, op, expected + (partner > op ? " in the next row" : " in the row before"), found);
  }
}

// Every value that crosses ranks is transferred. (Places say that no other is, the table that none is twice.)
void check_transfers(const Plan& plan, const WorkTable& table) {
  for (int32_t stage = 0; stage + 1 < plan.num_stages; ++stage) {
    for (int32_t microbatch = 0; microbatch < plan.num_microbatches; ++microbatch) {
      if (plan.rank_of(stage, microbatch) == plan.rank_of(stage + 1, microbatch)) continue;
      if (table.at(stage, microbatch).send_f < 0)
        Cell{plan, stage, microbatch}.fail_missing(to_text(OpKind::SEND_F, stage, microbatch), "none");
      const bool sends_grad = table.at(stage + 1, microbatch).send_b >= 0;
      if (sends_grad == table.forward_only())
        Cell{plan, stage + 1, microbatch}.fail_missing(
            sends_grad ? "no gradient in a plan without backward" : to_text(OpKind::SEND_B, stage + 1, microbatch),
            sends_grad ? to_text(OpKind::SEND_B, stage + 1, microbatch) : "none");
    }
  }
}

// Dependencies stay on their rank and leave their lane; if one is no earlier row, the rows are no order.
void check_dependencies(const Plan& plan) {
  bool is_order = true;
  for (int32_t op = 0; op < plan.num_ops(); ++op) {
    int32_t previous = -1;
    for (const int32_t dep : plan.deps_of(op)) {
      if (dep <= previous)
        fail(plan, op, "ascending dependencies", std::to_string(dep) + " after " + std::to_string(previous));
      if (plan.rank_of(dep) != plan.rank_of(op))
        fail(plan, op, "dependencies on its own rank",
             name_of(plan, dep) + " on rank " + std::to_string(plan.rank_of(dep)));
      if (plan.op_lane[dep] == plan.op_lane[op]) fail(plan, op, "dependencies on other lanes", name_of(plan, dep));
      is_order = is_order && dep < op;
      previous = dep;
    }
  }
  if (is_order) return;
  const WaitCycle cycle = find_wait_cycle(plan);
  throw PlanError(cycle.description, {plan.rank_of(cycle.ops[0]), plan.text(cycle.ops[0]), {}});
}

void check_data_flow(const Plan& plan, const WorkTable& table) {
  for (int32_t op = 0; op < plan.num_ops(); ++op) {
    const LaneKind kind = lane_of(plan.ops[op].kind);
    if (kind == LaneKind::SEND) check_waits(plan, op, table.compute_row(plan.ops[op]), "which makes what it sends");
    if (kind == LaneKind::RECV) check_waits(plan, table.compute_row(plan.ops[op]), op, "which it reads");
  }
}

// An edge carries its transfers in the order in which their sender computes them.
void check_edge_order(const Plan& plan, const WorkTable& table, const std::vector<int32_t>& sends) {
  const auto place = [&](int32_t send) { return table.compute_place(plan.ops[send]); };
  for (size_t i = 1; i < sends.size(); ++i)
    if (place(sends[i]) < place(sends[i - 1]))
      fail(plan, sends[i], "its edge in the order of its rank's compute ops",
           name_of(plan, sends[i - 1]) + " before it");
}

// Of each edge, at most recv_depth receives are posted and not yet read. A rank computes in order, so the window of a
// receive opens with the recv_depth-th last of the ops that read the earlier receives.
void check_window(const Plan& plan, const WorkTable& table, const std::vector<int32_t>& recvs) {
  const size_t recv_depth = plan.recv_depth;
  std::priority_queue<int32_t, std::vector<int32_t>, std::greater<>> last_readers;
  for (const int32_t recv : recvs) {
    if (last_readers.size() == recv_depth)
      check_waits(plan, recv, last_readers.top(), "which makes room in its edge's receive window");
    last_readers.push(table.compute_row(plan.ops[recv]));
    if (last_readers.size() > recv_depth) last_readers.pop();
  }
}

Payload payload_of(OpKind recv) {
  using enum OpKind;
  return recv == RECV_F      ? Payload::INPUT
         : recv == RECV_B    ? Payload::GRAD
         : recv == RECV_NORM ? Payload::NORM
                             : Payload::TOTAL;
}

// A RECV fills a slot of its own edge, stage and payload, once all that the slot held before is over.
void check_slots(const Plan& plan, const WorkTable& table) {
  std::vector<int32_t> holder(plan.slots.size(), -1);  // the RECV that filled it last
  for (int32_t op = 0; op < plan.num_ops(); ++op) {
    const Op& the_op = plan.ops[op];
    const int32_t slot = plan.op_slot[op];
    const std::string found = slot < 0 ? "none" : "slot " + std::to_string(slot);
    if (lane_of(the_op.kind) != LaneKind::RECV) {
      if (slot >= 0) fail(plan, op, "no slot", found);
      continue;
    }
    if (slot < 0 || plan.slots[slot] != Slot{plan.rank_of(op), the_op.stage, payload_of(the_op.kind)})
      fail(plan, op, "a slot of its rank, its stage and its payload", found);
    if (holder[slot] >= 0) {
      if (plan.op_lane[holder[slot]] != plan.op_lane[op])
        fail(plan, op, "a slot of its own edge", found + ", which " + name_of(plan, holder[slot]) + " fills too");
      const StageWork& former = table.of(plan.ops[holder[slot]]);
      const int32_t send = table.forward_only() ? former.send_f : former.send_b;
      check_waits(plan, op, former.last_compute_row(), "the last to use its slot");
      if (send >= 0) check_waits(plan, op, send, "the last to use its slot");
    }
    holder[slot] = op;
  }
}

}  // namespace

void verify(const Plan& plan) {
  check_lanes(plan);
  check_places(plan);
  const WorkTable table(plan);
  check_compute(plan, table);
  check_pairs(plan);
  check_transfers(plan, table);
  check_post_validation(plan, table);
  check_dependencies(plan);
  check_data_flow(plan, table);
  for (size_t lane = 0; lane < plan.lanes.size(); ++lane) {
    if (plan.lanes[lane].kind == LaneKind::SEND) check_edge_order(plan, table, plan.lane_ops[lane]);
    if (plan.lanes[lane].kind == LaneKind::RECV) check_window(plan, table, plan.lane_ops[lane]);
  }
  check_slots(plan, table);
  check_shards(plan);
  check_vocabulary(plan, table);
}

}  // namespace pipert
