// How often the driver's functions are called and how long they keep the calling thread, found out on the way: what
// is left of a benchmark's time is the caller's own.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "device/cuda/driver_api.h"

namespace pipert::cuda {

struct CallTime {
  std::string name;  // as in DriverApi
  int64_t calls = 0;
  int64_t ns = 0;  // in all of them, less what reading the clock costs
};

// From the first call of driver() on, for as long as the process lives, every call of every thread is timed. Throws
// ConfigError when driver() was called before.
void time_driver_calls();

// The calls of this thread since it last asked, functions that were not called left out.
std::vector<CallTime> take_call_times();

// Functions that time those of `real`, which outlives them, if time_driver_calls() was called; else those of `real`.
DriverApi timed_if_asked(const DriverApi& real);

}  // namespace pipert::cuda
