// The plan on a virtual clock: when each op starts and ends, given what ops cost.
//
// The rules are the executor's: a lane runs its ops in order, and an op starts when its dependencies have ended.
// A transfer starts when its SEND and its RECV can both run and the edge is free. Its SEND ends when the bytes have
// left (after the occupancy), its RECV when they have arrived (after the latency too).
#pragma once

#include <vector>

#include "plan/plan.h"
#include "sim/costs.h"

namespace pipert {

struct Timeline {
  std::vector<double> start;  // row = op id
  std::vector<double> end;
};

// Requires a verified plan. Throws ConfigError if the costs are not of its sizes.
Timeline simulate(const Plan& plan, const ClockCosts& costs);

}  // namespace pipert
