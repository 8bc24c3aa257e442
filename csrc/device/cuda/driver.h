// The CUDA driver, opened when it is first needed.
#pragma once

#include <string>

#include "core/error.h"
#include "device/cuda/driver_api.h"

namespace pipert::cuda {

// The oldest driver that has everything that is called: CUDA 12.0's.
inline constexpr int kOldestDriver = 12000;

// The functions of libcuda.so.1, or of the file that PIPERT_LIBCUDA names. Throws CudaError saying what is missing: no
// driver, no device, a driver that is too old. The first call decides for the process.
const DriverApi& driver();

// Whether driver() would return.
bool driver_works() noexcept;

// "CUDA_ERROR_OUT_OF_MEMORY (out of memory)".
std::string describe(Result result);

[[noreturn]] void fail_call(const char* call, Result result);
void report_call(const char* call, Result result) noexcept;

// Throws CudaError when a call of the driver fails: PIPERT_CUDA_TRY(event_record(event, stream)).
#define PIPERT_CUDA_TRY(call)                                                                            \
  do {                                                                                                   \
    if (const ::pipert::cuda::Result result_ = ::pipert::cuda::driver().call; result_ != 0) [[unlikely]] \
      ::pipert::cuda::fail_call(#call, result_);                                                         \
  } while (false)

// For destructors: a failure goes to the log.
#define PIPERT_CUDA_REPORT(call)                                                            \
  do {                                                                                      \
    if (const ::pipert::cuda::Result result_ = ::pipert::cuda::driver().call; result_ != 0) \
      ::pipert::cuda::report_call(#call, result_);                                          \
  } while (false)

}  // namespace pipert::cuda
