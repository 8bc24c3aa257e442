// What showing an op to NVTX costs.
#pragma once

#include <cstdint>

namespace pipert {

// Nanoseconds of one turn of a loop, medians: that does nothing, that has a range which nobody wants to see, and that
// has one which is shown to the tool that is attached, if any.
struct NvtxCost {
  double loop_ns = 0;
  double off_ns = 0;
  double on_ns = 0;
};

// The three loops run in turns, `iterations` of each altogether. Throws ConfigError when there are none, or NVTX is
// missing.
NvtxCost nvtx_benchmark(int64_t iterations);

}  // namespace pipert
