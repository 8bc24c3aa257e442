#include "plan/work_table.h"

#include "core/error.h"

namespace pipert {
namespace {

void record(const Plan& plan, int32_t row, const ComputePart& part, int32_t value, int32_t divisor, int32_t& place) {
  if (place >= 0) {
    const std::string text = to_text(part.kind, part.stage, part.microbatch);
    throw PlanError("rank " + std::to_string(plan.rank_of(row)) + ": " + text + ": expected once, found as op " +
                        std::to_string(place / divisor) + " and as op " + std::to_string(row),
                    {plan.rank_of(row), text, {}});
  }
  place = value;
}

}  // namespace

int32_t& StageWork::place(OpKind kind) {
  switch (kind) {
    case OpKind::FORWARD:
      return forward;
    case OpKind::RECOMPUTE:
      return recompute;
    case OpKind::BACKWARD:
      return backward;
    case OpKind::INPUT_GRAD:
      return input_grad;
    case OpKind::WEIGHT_GRAD:
      return weight_grad;
    case OpKind::SEND_F:
      return send_f;
    case OpKind::RECV_F:
      return recv_f;
    case OpKind::SEND_B:
      return send_b;
    case OpKind::RECV_B:
      return recv_b;
    default:
      break;
  }
  PIPERT_CHECK(false, "an op of this kind has no place of its own");
  return forward;
}

int32_t& RankWork::row(OpKind kind) {
  switch (kind) {
    case OpKind::NORM:
      return norm;
    case OpKind::OPT:
      return opt;
    case OpKind::VALIDATE:
      return validate;
    case OpKind::ROLLBACK:
      return rollback;
    case OpKind::SEND_NORM:
      return send_norm;
    case OpKind::RECV_NORM:
      return recv_norm;
    case OpKind::SEND_TOTAL:
      return send_total;
    case OpKind::RECV_TOTAL:
      return recv_total;
    default:
      break;
  }
  PIPERT_CHECK(false, "an op of this kind is for no rank as a whole");
  return norm;
}

WorkTable::WorkTable(const Plan& plan)
    : num_microbatches_(plan.num_microbatches),
      work_(size_t{static_cast<uint32_t>(plan.num_stages)} * plan.num_microbatches),
      ranks_(plan.num_ranks) {
  const auto work_of = [&](int32_t stage, int32_t microbatch) -> StageWork& {
    return work_[size_t{static_cast<uint32_t>(stage)} * num_microbatches_ + microbatch];
  };
  for (int32_t row = 0; row < plan.num_ops(); ++row) {
    const Op& op = plan.ops[row];
    if (scope_of(op.kind) == Scope::RANK) {
      record(plan, row, op.parts[0], row, 1, ranks_[op.stage].row(op.kind));
      continue;
    }
    int32_t place = 2 * row;
    for (const ComputePart& part : op.compute_parts()) {
      record(plan, row, part, place++, 2, work_of(part.stage, part.microbatch).place(part.kind));
      if (part.kind == OpKind::FORWARD) continue;
      forward_only_ = false;
      int32_t& first_backward = ranks_[plan.rank_of(row)].first_backward;
      if (first_backward < 0) first_backward = row;
    }
    if (!op.compute_parts().empty()) ranks_[plan.rank_of(row)].last_compute = row;
    if (is_transfer(op.kind)) record(plan, row, op.parts[0], row, 1, work_of(op.stage, op.microbatch).place(op.kind));
  }
}

int32_t WorkTable::compute_place(const Op& transfer) const {
  switch (transfer.kind) {
    case OpKind::SEND_F:
    case OpKind::RECV_F:
      return of(transfer).forward;
    case OpKind::SEND_NORM:
    case OpKind::RECV_NORM:
      return 2 * rank(transfer.stage).norm;
    case OpKind::SEND_TOTAL:
    case OpKind::RECV_TOTAL:
      return 2 * rank(transfer.stage).validate;
    default:
      return of(transfer).grad_place();
  }
}

}  // namespace pipert
