// Why a plan cannot run: the ops that wait for each other.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "plan/plan.h"

namespace pipert {

struct WaitCycle {
  std::vector<int32_t> ops;  // each waits for the next, the last for the first
  std::string description;   // a grid of ranks around them, then the line "1RECV_F3 waits for 0SEND_F3 waits for ..."
};

// For a plan whose rows are no valid order, though its transfers are paired (SEND, then RECV in the next row) and its
// dependencies stay on their rank: runs it with rendezvous sends until nothing can move, and takes the shortest cycle
// among the ops that are then next. If no lane blocks another, a rank's lanes are taken as one queue, which a plan must
// survive as well.
WaitCycle find_wait_cycle(const Plan& plan);

}  // namespace pipert
