#include "device/cuda.h"

namespace pipert {

bool built_with_cuda() noexcept { return false; }

int cuda_device_count() noexcept { return 0; }

}  // namespace pipert
