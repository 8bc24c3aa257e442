// The data-parallel collectives of a plan: UNSHARD, RESHARD and REDUCE_GRAD of a stage on one of its ranks.
#pragma once

#include "plan/plan.h"

namespace pipert {

// Proves that a stage which is unsharded at all is so whenever a rank computes on it, and that gradients which are
// reduced at all are so in the end, by explicit dependencies. Requires dependencies that point to earlier rows. Throws
// PlanError.
void check_shards(const Plan& plan);

}  // namespace pipert
