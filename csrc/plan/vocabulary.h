// The vocabulary's passes of a plan: S and T, the embedding, and the meetings of all ranks around them.
#pragma once

#include "plan/plan.h"
#include "plan/work_table.h"

namespace pipert {

// Proves that the input embedding, the output layer, or both, are split over all ranks for every microbatch if they are
// for one; that a meeting is one step of all ranks; and that every pass waits for what it reads, and what reads its
// results for it. Requires dependencies that point to earlier rows. Throws PlanError.
void check_vocabulary(const Plan& plan, const WorkTable& table);

}  // namespace pipert
