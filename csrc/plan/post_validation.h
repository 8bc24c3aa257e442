// Checks the ops that step the optimizer without a barrier, and judge that step in the next one.
#pragma once

#include "plan/plan.h"
#include "plan/work_table.h"

namespace pipert {

// Either no rank has any of these ops, or every rank has all: VALIDATE and ROLLBACK, before any op that adds to its
// gradients; NORM and OPT, after all that do; and the transfers that pass the norms up the ranks and the total down.
// Throws PlanError.
void check_post_validation(const Plan& plan, const WorkTable& table);

}  // namespace pipert
