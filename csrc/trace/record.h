// What a step leaves behind for each op: when its lane turned to it, and when it ran.
#pragma once

#include <cstdint>

namespace pipert {

// All times are CLOCK_MONOTONIC. Of a transfer, start and end are those of the sender's copy, at both ends. Read by
// Python as "<IIqqq".
struct TraceRecord {
  uint32_t op = 0;
  uint32_t lane = 0;
  int64_t ready_ns = 0;  // the lane turned to the op, and may have begun to wait; a RECV: its slot was offered
  int64_t start_ns = 0;
  int64_t end_ns = 0;
};

static_assert(sizeof(TraceRecord) == 32);

}  // namespace pipert
