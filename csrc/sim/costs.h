// What ops cost, as small tables, and what that makes each op of a plan cost.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "plan/plan.h"

namespace pipert {

struct EdgeTimes {
  double latency = 0;    // of a transfer; occupies nothing
  double occupancy = 0;  // time for which a microbatch's transfer keeps its edge from the next one
};

// An edge whose times are not those of all.
struct LinkTimes {
  int32_t source;
  int32_t destination;
  EdgeTimes times;
};

struct ClockCosts {
  // Per op kind, a time for each stage (of a kind for ranks: for each rank; of a meeting: only the first counts);
  // empty: ops of this kind take no time.
  std::array<std::vector<double>, op_kind_table.size()> times;
  std::vector<double> scale;       // per (stage, microbatch), stage by stage: factor of compute times; empty: 1
  std::vector<double> rank_speed;  // compute times are divided by it; empty: 1
  double overlap = 1;              // factor of an overlapped pair's sum
  EdgeTimes edge;
  std::vector<LinkTimes> links;
  double host_cores = 0;       // shared evenly by the running compute ops, at most one each; 0: no limit
  std::vector<double> jitter;  // per op, a factor of its time (of a transfer: its SEND's counts); empty: 1
};

// The time of each op of one plan.
class OpTimes {
 public:
  // Keeps references to both. Throws ConfigError if a table is not of the plan's size.
  OpTimes(const Plan& plan, const ClockCosts& costs);

  // The time of an op that is no transfer; of a compute op, on a core of its own.
  double local(int32_t op) const;
  // The times of a transfer, given its SEND.
  EdgeTimes transfer(int32_t send) const;

 private:
  double jitter(int32_t op) const { return costs_.jitter.empty() ? 1.0 : costs_.jitter[op]; }

  const Plan& plan_;
  const ClockCosts& costs_;
  std::vector<double> times_;          // per (kind, stage), kind by kind
  std::vector<double> lane_slowness_;  // per lane; 1 where nothing is computed
  std::vector<EdgeTimes> lane_edge_;   // per lane
};

}  // namespace pipert
