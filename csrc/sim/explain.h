// Why a step took as long as it did: where each rank's idle time went, the critical path, and the slack beside it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "plan/plan.h"

namespace pipert {

// The parts of a rank's idle time; their sum is the makespan - its compute time. A step that is forward only warms up
// until a rank's first op and drains after its last.
struct IdleTimes {
  double warm_up = 0;        // what it needs was not made yet, up to its first backward
  double dependency = 0;     // the same, from there to its last forward
  double drain = 0;          // the same, from there on; and nothing left to do
  double communication = 0;  // an input had been made, but had not arrived and been noticed; or a collective ran
  double overhead = 0;       // all was there before
};

struct PathStep {
  int32_t op;  // of a transfer the end through which the path goes: RECV to what it brings, SEND to the next transfer
  double waited;  // from the end of the step before (from the start of the window) to its start
};

struct Explanation {
  std::vector<IdleTimes> ranks;
  std::vector<PathStep> critical_path;  // in time; its ops and waits add up to the makespan
  std::vector<double> slack;            // per op: how much later it could end without moving the end of the step
};

// start and end: row = op id, simulated or measured. Requires a verified plan, and spans of its size.
//
// An op follows what its lane ran before, and its dependencies; a transfer follows those of both its ends, and the
// edge's transfer before. Times between an op and the last that it followed are taken to be its own.
Explanation explain(const Plan& plan, std::span<const double> start, std::span<const double> end);

}  // namespace pipert
