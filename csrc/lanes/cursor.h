// How far a lane has come: the event that ops on other lanes wait for.
#pragma once

#include <cstdint>
#include <vector>

#include "core/counter.h"

namespace pipert {

// Counts the ops that a lane has finished since it was made, over all steps. Op `position` of step `step` (both from
// 0) is finished when the count exceeds step · ops_per_step + position.
struct Cursor {
  Counter finished;
  uint64_t ops_per_step = 0;

  uint64_t target(uint64_t step, uint64_t position) const noexcept { return step * ops_per_step + position + 1; }
};

// An op that another one waits for.
struct Dependency {
  const Cursor* cursor = nullptr;
  uint64_t position = 0;

  bool holds(uint64_t step) const noexcept { return cursor->finished.reached(cursor->target(step, position)); }
};

inline bool all_hold(const std::vector<Dependency>& dependencies, uint64_t step) noexcept {
  for (const Dependency& dependency : dependencies) {
    if (!dependency.holds(step)) return false;
  }
  return true;
}

}  // namespace pipert
