// Steps whose ops take a little more or less time than they should: what the schedule's figures are then.
#pragma once

#include <cstdint>
#include <vector>

#include "plan/plan.h"
#include "sim/costs.h"

namespace pipert {

struct NoisyStep {
  double makespan;
  double longest_rank_span;
  double largest_compute_time;  // of any rank
};

struct Variation {
  double op_cv = 0;      // coefficient of variation of every op's time, transfers included
  double straggler = 1;  // in each step one rank, picked at random, takes this many times longer to compute
};

// Simulates steps in which the time of each op is multiplied by an independent log-normal factor of mean 1. What varies
// in a step follows from the seed and its number alone.
std::vector<NoisyStep> simulate_noisy(const Plan& plan, ClockCosts costs, const Variation& variation, uint64_t seed,
                                      uint64_t first_step, size_t num_steps);

}  // namespace pipert
