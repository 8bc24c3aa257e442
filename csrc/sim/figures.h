// What a timeline amounts to: makespan, bubbles, peaks. The same for a simulated and for a measured one.
#pragma once

#include <span>
#include <vector>

#include "plan/plan.h"

namespace pipert {

// Activation of one stage-microbatch.
struct StageMemory {
  double held;          // from the start of F (of R, where it is recomputed) to the end of I
  double held_after_i;  // the part that stays until the end of W
  double held_after_w;  // the part of that that stays until the end of the step
};

// Activations that a plan's ops hold, all in one unit.
struct Memory {
  std::span<const StageMemory> stages;
  double shard = 0;  // of one microbatch on a rank's shard of the vocabulary, from the start of S to the end of T
};

struct RankFigures {
  double span = 0;             // end of its last compute op - start of its first
  double compute_time = 0;     // time in which it computes
  double peak_activation = 0;  // in the unit of StageMemory
  double exposed_comm = 0;     // time in which it computes nothing while what its next op needs is on the way
};

struct Figures {
  double makespan = 0;  // end of the last compute op or collective - start of the first, over all ranks
  std::vector<RankFigures> ranks;
};

// start and end: row = op id. Requires a verified plan, and spans and memory of its sizes.
Figures measure(const Plan& plan, std::span<const double> start, std::span<const double> end, const Memory& memory);

}  // namespace pipert
