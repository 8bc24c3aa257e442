// What the environment asks of the fake driver. Read once, by the first call of a process.
#pragma once

#include <atomic>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>

#include "driver_api.h"

namespace fake_cuda {

struct Settings {
  int num_devices = 1;                                           // FAKE_CUDA_DEVICES
  int version = 13000;                                           // FAKE_CUDA_VERSION
  uint64_t memory_bytes = std::numeric_limits<uint64_t>::max();  // FAKE_CUDA_MEMORY_BYTES, a process's budget
  uint32_t jitter_us = 0;                                        // FAKE_CUDA_JITTER_US
  uint64_t seed = 0;                                             // FAKE_CUDA_SEED
  uint32_t max_connections = 0;                                  // FAKE_CUDA_MAX_CONNECTIONS; 0: one per stream
  std::string fail_name;                                         // FAKE_CUDA_FAIL=name:n[:code]
  uint64_t fail_call = 0;                                        // from 1
  CUresult fail_code = CUDA_ERROR_UNKNOWN;
};

const Settings& settings();

// The error that this call of `function` is to return, CUDA_SUCCESS for none. Counts the calls.
CUresult next_fault(std::string_view function) noexcept;

}  // namespace fake_cuda
