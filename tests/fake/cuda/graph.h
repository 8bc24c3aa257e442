// A captured graph and its replay.
#pragma once

#include <cstdint>
#include <vector>

#include "work.h"

namespace fake_cuda {

class Event;

// Exactly one of work, external_record and external_wait is set.
struct Node {
  Work work;
  Ref<Event> external_record;   // becomes a record of the event at each launch
  Ref<Event> external_wait;     // waits for what the event's record is at each launch
  uint32_t branch = 0;          // the captured stream, which has done its nodes in order
  std::vector<uint32_t> after;  // nodes of any branch
};

// Nodes stand in the order of their capture, so each comes after those that it depends on.
struct Graph : Shared {
  std::vector<Node> nodes;
  uint32_t num_branches = 0;
};

struct Exec : Shared {
  Ref<Graph> graph;
  Ref<Record> last_launch;  // launches of one exec run one after another
  uint64_t num_launches = 0;
};

// The work of a launch. The driver must be locked.
Work launch(Exec& exec);

}  // namespace fake_cuda
