// What streams can be made to do. Addresses of copies are taken as they are: any memory of the process will do.

#include <unistd.h>

#include <atomic>
#include <cstring>

#include "driver.h"

namespace fake_cuda {
namespace {

template <class Type>
Type* at(uint64_t address) {
  return reinterpret_cast<Type*>(address);  // NOLINT(performance-no-int-to-ptr)
}

CUresult submit_to(Driver& driver, CUstream handle, Work work) {
  const Ref<Stream> stream = driver.find_stream(handle);
  return stream ? submit(*stream, std::move(work)) : CUDA_ERROR_INVALID_HANDLE;
}

CUresult copy(const char* function, uint64_t to, uint64_t from, size_t bytes, CUstream stream) {
  return call(function, Needs::kContext, [&](Driver& driver, Lock&) -> CUresult {
    if (bytes > 0 && (to == 0 || from == 0)) return CUDA_ERROR_INVALID_VALUE;
    return submit_to(driver, stream, [=] {
      if (bytes > 0) std::memcpy(at<void>(to), at<const void>(from), bytes);
    });
  });
}

bool holds(uint32_t found, uint32_t value, unsigned condition) noexcept {
  switch (condition) {
    case CU_STREAM_WAIT_VALUE_GEQ:
      return static_cast<int32_t>(found - value) >= 0;
    case CU_STREAM_WAIT_VALUE_EQ:
      return found == value;
    case CU_STREAM_WAIT_VALUE_AND:
      return (found & value) != 0;
    default:
      return ~(found | value) != 0;
  }
}

// Sees what the writer did before only once the condition holds.
void wait_value(uint64_t address, uint32_t value, unsigned condition) noexcept {
  constexpr int kSpins = 200;
  const std::atomic_ref<uint32_t> word(*at<uint32_t>(address));
  for (int looks = 0;; ++looks) {
    if (holds(word.load(std::memory_order_relaxed), value, condition) &&
        holds(word.load(std::memory_order_acquire), value, condition)) {
      return;
    }
    if (looks >= kSpins) usleep(20);
  }
}

bool is_word(Driver& driver, uint64_t address) {
  return address % sizeof(uint32_t) == 0 && driver.mapped(address, sizeof(uint32_t));
}

}  // namespace

CUresult cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
  return copy(__func__, to, from, bytes, stream);
}

CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
  return copy(__func__, to, from, bytes, stream);
}

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, CUstream stream) {
  return copy(__func__, to, reinterpret_cast<uint64_t>(from), bytes, stream);
}

CUresult cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, CUstream stream) {
  return copy(__func__, reinterpret_cast<uint64_t>(to), from, bytes, stream);
}

CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t bytes, CUstream stream) {
  return call(__func__, Needs::kContext, [&](Driver& driver, Lock&) -> CUresult {
    if (bytes > 0 && to == 0) return CUDA_ERROR_INVALID_VALUE;
    return submit_to(driver, stream, [=] {
      if (bytes > 0) std::memset(at<void>(to), value, bytes);
    });
  });
}

CUresult cuStreamWaitValue32_v2(CUstream stream, CUdeviceptr address, uint32_t value, unsigned flags) {
  return call(__func__, Needs::kContext, [&](Driver& driver, Lock&) -> CUresult {
    const unsigned condition = flags & ~CU_STREAM_WAIT_VALUE_FLUSH;
    if (condition > CU_STREAM_WAIT_VALUE_NOR || !is_word(driver, address)) return CUDA_ERROR_INVALID_VALUE;
    return submit_to(driver, stream, [=] { wait_value(address, value, condition); });
  });
}

CUresult cuStreamWriteValue32_v2(CUstream stream, CUdeviceptr address, uint32_t value, unsigned flags) {
  return call(__func__, Needs::kContext, [&](Driver& driver, Lock&) -> CUresult {
    if (flags > 1 || !is_word(driver, address)) return CUDA_ERROR_INVALID_VALUE;
    return submit_to(driver, stream, [=] {
      std::atomic_ref<uint32_t>(*at<uint32_t>(address)).store(value, std::memory_order_release);
    });
  });
}

CUresult cuLaunchHostFunc(CUstream stream, CUhostFn function, void* argument) {
  return call(__func__, Needs::kContext, [&](Driver& driver, Lock&) -> CUresult {
    if (function == nullptr) return CUDA_ERROR_INVALID_VALUE;
    return submit_to(driver, stream, host_function(function, argument));
  });
}

}  // namespace fake_cuda
