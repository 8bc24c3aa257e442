#include "device/cuda/kernels.h"

namespace pipert::cuda {

const char* kernel_architectures() noexcept { return ""; }

void spin(StreamView, int64_t) { throw CudaError("this build has no CUDA kernels: install nvcc and build again"); }

}  // namespace pipert::cuda
