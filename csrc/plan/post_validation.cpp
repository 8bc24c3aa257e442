#include "plan/post_validation.h"

#include <string>

#include "plan/fault.h"

namespace pipert {
namespace {

void require(const Plan& plan, int32_t rank, OpKind kind, int32_t row, bool needed) {
  const std::string text = to_text(kind, rank, -1);
  if (needed && row < 0)
    fail(rank, text, "expected " + text + ", as another rank has ops of post-validation, found none");
  if (!needed && row >= 0) fail(plan, row, "none, as there are no microbatches to train on", "it");
}

void check_order(const Plan& plan, int32_t first, int32_t second) {
  if (first >= 0 && second >= 0 && first > second) fail(plan, second, "it after " + name_of(plan, first), "it before");
}

void check_rank(const Plan& plan, const WorkTable& table, int32_t rank) {
  using enum OpKind;
  const RankWork& work = table.rank(rank);
  const bool trains = !table.forward_only();
  require(plan, rank, VALIDATE, work.validate, trains);
  require(plan, rank, ROLLBACK, work.rollback, trains);
  require(plan, rank, NORM, work.norm, trains);
  require(plan, rank, OPT, work.opt, trains);
  const bool is_first = rank == 0, is_last = rank + 1 == plan.num_ranks;
  if (!is_last) require(plan, rank, SEND_NORM, work.send_norm, trains);
  if (!is_first) require(plan, rank, SEND_TOTAL, work.send_total, trains);
  check_order(plan, work.validate, work.rollback);
  check_order(plan, work.rollback, work.first_backward);
  check_order(plan, work.last_compute, work.norm);
  check_order(plan, work.norm, work.opt);
}

}  // namespace

void check_post_validation(const Plan& plan, const WorkTable& table) {
  bool found = false;
  for (const Op& op : plan.ops) found = found || scope_of(op.kind) == Scope::RANK;
  for (int32_t rank = 0; found && rank < plan.num_ranks; ++rank) check_rank(plan, table, rank);
}

}  // namespace pipert
