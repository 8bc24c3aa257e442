// Time, as every part of the core counts it: CLOCK_MONOTONIC, which all processes of a machine share.
#pragma once

#include <time.h>

#include <cstdint>

namespace pipert {

inline int64_t now_ns() noexcept {
  timespec time{};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

}  // namespace pipert
