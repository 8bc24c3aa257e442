#include <cuda_runtime_api.h>

#include "device/cuda/kernels.h"

namespace pipert::cuda {
namespace {

__global__ void spin_kernel(int64_t duration_ns) {
  uint64_t start;
  uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
  do {
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  } while (now - start < static_cast<uint64_t>(duration_ns));
}

}  // namespace

const char* kernel_architectures() noexcept { return PIPERT_CUDA_ARCHITECTURES; }

void spin(StreamView stream, int64_t duration_ns) {
  spin_kernel<<<1, 1, 0, reinterpret_cast<cudaStream_t>(stream.get())>>>(duration_ns);
  if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) {
    throw CudaError(std::string("the spin kernel cannot be launched: ") + cudaGetErrorString(error));
  }
}

}  // namespace pipert::cuda
