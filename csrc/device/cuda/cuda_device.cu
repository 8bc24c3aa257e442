#include <cuda_runtime_api.h>

#include "device/cuda.h"

namespace pipert {

bool built_with_cuda() noexcept { return true; }

int cuda_device_count() noexcept {
  // Without a driver the call fails and leaves its argument untouched.
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

}  // namespace pipert
