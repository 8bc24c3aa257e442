// The edges of a plan, as the transports see them: who sends to whom, and into how many slots.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "plan/plan.h"

namespace pipert {

// A directed edge: a pair of ranks that messages flow between in one direction and in one order.
struct Edge {
  int32_t source = 0;
  int32_t destination = 0;
  uint32_t num_slots = 0;
  uint32_t ring_entries = 0;  // how many messages may be posted and not yet taken
};

struct Topology {
  int32_t num_ranks = 0;
  uint64_t fingerprint = 0;  // equal plans have equal ones: what the ranks compare when they meet
  std::vector<Edge> edges;   // the same order on every rank

  // Where a plan's lanes and slots stand here; -1 for a compute lane and for one without ops.
  std::vector<int32_t> edge_of_lane;
  std::vector<int32_t> edge_slot;  // plan slot → its number on its edge; -1 if no RECV uses it

  // `min_ring_entries`: a power of two. Throws PlanError when a slot is used by two edges or an edge's two ends do not
  // match.
  static Topology of(const Plan& plan, uint32_t min_ring_entries = 2);
};

}  // namespace pipert
