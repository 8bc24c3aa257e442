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

WorkTable::WorkTable(const Plan& plan)
    : num_microbatches_(plan.num_microbatches),
      work_(size_t{static_cast<uint32_t>(plan.num_stages)} * plan.num_microbatches) {
  const auto work_of = [&](int32_t stage, int32_t microbatch) -> StageWork& {
    return work_[size_t{static_cast<uint32_t>(stage)} * num_microbatches_ + microbatch];
  };
  for (int32_t row = 0; row < plan.num_ops(); ++row) {
    const Op& op = plan.ops[row];
    int32_t place = 2 * row;
    for (const ComputePart& part : op.compute_parts()) {
      record(plan, row, part, place++, 2, work_of(part.stage, part.microbatch).place(part.kind));
      forward_only_ = forward_only_ && part.kind == OpKind::FORWARD;
    }
    if (is_transfer(op.kind)) record(plan, row, op.parts[0], row, 1, work_of(op.stage, op.microbatch).place(op.kind));
  }
}

}  // namespace pipert
