// The plan on a virtual clock: when each op starts and ends, given what ops cost.
//
// The rules are the executor's: a lane runs its ops in order, and an op starts when its dependencies have ended.
// A transfer starts when its SEND and its RECV can both run and the edge is free. Its SEND ends when the bytes have
// left (after the occupancy), its RECV when they have arrived (after the latency too).
#pragma once

#include <vector>

#include "plan/plan.h"

namespace pipert {

// Times of one stage's ops on one microbatch.
struct StageTimes {
  double forward;
  double backward;
  double input_grad;
  double weight_grad;
  double recompute;
};

struct ClockCosts {
  std::vector<StageTimes> stages;  // one per stage
  double latency = 0;              // of a transfer; occupies nothing
  double occupancy = 0;            // time for which a transfer keeps its edge from the next one
  double host_cores = 0;           // shared evenly by the running compute ops, at most one each; 0: no limit
};

struct Timeline {
  std::vector<double> start;  // row = op id
  std::vector<double> end;
};

// Requires a verified plan. Throws ConfigError if the costs are not for as many stages as the plan has.
Timeline simulate(const Plan& plan, const ClockCosts& costs);

}  // namespace pipert
