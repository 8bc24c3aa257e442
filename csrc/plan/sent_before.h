// Which messages have certainly left a rank by the time it makes the next one: so long must their memory be kept.
#pragma once

#include <cstdint>
#include <vector>

#include "plan/plan.h"

namespace pipert {

// Per SEND of `rank`: how many messages of its lane, in this step, have certainly been received elsewhere when the op
// that makes its message begins; 0 for other ops. It follows from the plan's dependencies alone: a gradient that came
// back, say, tells that the activation has left.
std::vector<int32_t> sent_before(const Plan& plan, int32_t rank);

}  // namespace pipert
