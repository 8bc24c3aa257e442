// The CUDA kernels of the core. A build without nvcc has none of them; the rest of the CUDA backend needs no compiler.
#pragma once

#include <cstdint>

#include "device/cuda/stream.h"

namespace pipert::cuda {

// For which architectures there are kernels: "80-real 90a-real 100a". Empty: this build has none.
const char* kernel_architectures() noexcept;

// Keeps `stream` busy for about `duration_ns`, with one warp of one SM. Throws CudaError: a build without kernels, a
// launch that failed.
void spin(StreamView stream, int64_t duration_ns);

}  // namespace pipert::cuda
