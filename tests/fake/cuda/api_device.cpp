// Initialisation, errors, devices and their contexts.

#include <algorithm>
#include <cstdio>
#include <iterator>

#include "driver.h"

namespace fake_cuda {
namespace {

struct ErrorText {
  CUresult code;
  const char* name;
  const char* text;
};

#define ERROR(name, text) {name, #name, text}
constexpr ErrorText kErrors[] = {
    ERROR(CUDA_SUCCESS, "no error"),
    ERROR(CUDA_ERROR_INVALID_VALUE, "invalid argument"),
    ERROR(CUDA_ERROR_OUT_OF_MEMORY, "out of memory"),
    ERROR(CUDA_ERROR_NOT_INITIALIZED, "initialization error"),
    ERROR(CUDA_ERROR_NO_DEVICE, "no CUDA-capable device is detected"),
    ERROR(CUDA_ERROR_INVALID_DEVICE, "invalid device ordinal"),
    ERROR(CUDA_ERROR_INVALID_CONTEXT, "invalid device context"),
    ERROR(CUDA_ERROR_MAP_FAILED, "mapping of buffer object failed"),
    ERROR(CUDA_ERROR_INVALID_HANDLE, "invalid resource handle"),
    ERROR(CUDA_ERROR_ILLEGAL_STATE, "the operation cannot be performed in the present state"),
    ERROR(CUDA_ERROR_NOT_READY, "device not ready"),
    ERROR(CUDA_ERROR_ILLEGAL_ADDRESS, "an illegal memory access was encountered"),
    ERROR(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED, "part or all of the requested memory range is already mapped"),
    ERROR(CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED, "pointer does not correspond to a registered memory region"),
    ERROR(CUDA_ERROR_LAUNCH_FAILED, "unspecified launch failure"),
    ERROR(CUDA_ERROR_NOT_PERMITTED, "operation not permitted"),
    ERROR(CUDA_ERROR_NOT_SUPPORTED, "operation not supported"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "operation not permitted when stream is capturing"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "operation failed due to a previous error during capture"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_MERGE, "operation would result in a merge of separate capture sequences"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, "capture was not ended in the same stream as it began"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_UNJOINED, "capturing stream has unjoined work"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_ISOLATION, "dependency created on uncaptured work in another stream"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, "operation would make the legacy stream depend on a capturing stream"),
    ERROR(CUDA_ERROR_CAPTURED_EVENT, "operation not permitted on an event last recorded in a capturing stream"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "attempt to terminate a thread-local capture from another thread"),
    ERROR(CUDA_ERROR_UNKNOWN, "unknown error"),
};
#undef ERROR

CUresult look_up(CUresult error, const char* ErrorText::* part, const char** result) {
  const auto* const found =
      std::find_if(std::begin(kErrors), std::end(kErrors), [&](const ErrorText& entry) { return entry.code == error; });
  *result = found == std::end(kErrors) ? nullptr : found->*part;
  return *result == nullptr ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

bool exists(CUdevice device) { return device >= 0 && device < settings().num_devices; }

// What an H100 answers, where somebody might ask.
int attribute_value(int attribute, CUdevice device) {
  switch (attribute) {
    case 1:  // MAX_THREADS_PER_BLOCK
      return 1024;
    case 16:  // MULTIPROCESSOR_COUNT
      return 132;
    case 33:  // PCI_BUS_ID
      return device + 1;
    case 38:  // L2_CACHE_SIZE
      return 50 << 20;
    case 40:  // ASYNC_ENGINE_COUNT
      return 3;
    case 75:  // COMPUTE_CAPABILITY_MAJOR
      return 9;
    case 31:   // CONCURRENT_KERNELS
    case 41:   // UNIFIED_ADDRESSING
    case 78:   // STREAM_PRIORITIES_SUPPORTED
    case 91:   // CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM
    case 99:   // HOST_REGISTER_SUPPORTED
    case 122:  // CAN_USE_64_BIT_STREAM_MEM_OPS
    case 123:  // CAN_USE_STREAM_WAIT_VALUE_NOR
    case 125:  // IPC_EVENT_SUPPORTED
      return 1;
    default:
      return 0;
  }
}

// Contexts are named by their device: 1 is device 0's.
CUcontext context_of(int device) {
  return reinterpret_cast<CUcontext>(static_cast<uintptr_t>(device) + 1);  // NOLINT(performance-no-int-to-ptr)
}

}  // namespace

CUresult cuInit(unsigned flags) {
  return call(__func__, Needs::kNothing, [&](Driver& driver, Lock&) -> CUresult {
    if (flags != 0) return CUDA_ERROR_INVALID_VALUE;
    if (settings().num_devices == 0) return CUDA_ERROR_NO_DEVICE;
    driver.contexts.resize(static_cast<size_t>(settings().num_devices));
    driver.initialised = true;
    return CUDA_SUCCESS;
  });
}

CUresult cuDriverGetVersion(int* version) {
  return call(__func__, Needs::kNothing, [&](Driver&, Lock&) -> CUresult {
    *version = settings().version;
    return CUDA_SUCCESS;
  });
}

CUresult cuGetErrorName(CUresult error, const char** name) { return look_up(error, &ErrorText::name, name); }

CUresult cuGetErrorString(CUresult error, const char** text) { return look_up(error, &ErrorText::text, text); }

CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  return call(__func__, Needs::kInit, [&](Driver&, Lock&) -> CUresult {
    if (!exists(ordinal)) return CUDA_ERROR_INVALID_DEVICE;
    *device = ordinal;
    return CUDA_SUCCESS;
  });
}

CUresult cuDeviceGetCount(int* count) {
  return call(__func__, Needs::kInit, [&](Driver&, Lock&) -> CUresult {
    *count = settings().num_devices;
    return CUDA_SUCCESS;
  });
}

CUresult cuDeviceGetName(char* name, int length, CUdevice device) {
  return call(__func__, Needs::kInit, [&](Driver&, Lock&) -> CUresult {
    if (!exists(device)) return CUDA_ERROR_INVALID_DEVICE;
    if (length <= 0) return CUDA_ERROR_INVALID_VALUE;
    std::snprintf(name, static_cast<size_t>(length), "Fake CUDA device");
    return CUDA_SUCCESS;
  });
}

CUresult cuDeviceGetAttribute(int* value, int attribute, CUdevice device) {
  return call(__func__, Needs::kInit, [&](Driver&, Lock&) -> CUresult {
    if (!exists(device)) return CUDA_ERROR_INVALID_DEVICE;
    if (attribute <= 0) return CUDA_ERROR_INVALID_VALUE;
    *value = attribute_value(attribute, device);
    return CUDA_SUCCESS;
  });
}

CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  return call(__func__, Needs::kInit, [&](Driver& driver, Lock&) -> CUresult {
    if (!exists(device)) return CUDA_ERROR_INVALID_DEVICE;
    ++driver.contexts[static_cast<size_t>(device)].num_retained;
    *context = context_of(device);
    return CUDA_SUCCESS;
  });
}

// What was made in the context stays usable after the last release.
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
  return call(__func__, Needs::kInit, [&](Driver& driver, Lock&) -> CUresult {
    if (!exists(device)) return CUDA_ERROR_INVALID_DEVICE;
    int& num_retained = driver.contexts[static_cast<size_t>(device)].num_retained;
    if (num_retained == 0) return CUDA_ERROR_INVALID_CONTEXT;
    --num_retained;
    return CUDA_SUCCESS;
  });
}

CUresult cuCtxGetCurrent(CUcontext* context) {
  return call(__func__, Needs::kInit, [&](Driver&, Lock&) -> CUresult {
    *context = current_device() < 0 ? nullptr : context_of(current_device());
    return CUDA_SUCCESS;
  });
}

CUresult cuCtxSetCurrent(CUcontext context) {
  return call(__func__, Needs::kInit, [&](Driver& driver, Lock&) -> CUresult {
    if (context == nullptr) {
      current_device() = -1;
      return CUDA_SUCCESS;
    }
    for (int device = 0; device < settings().num_devices; ++device) {
      if (context != context_of(device) || driver.contexts[static_cast<size_t>(device)].num_retained == 0) continue;
      current_device() = device;
      return CUDA_SUCCESS;
    }
    return CUDA_ERROR_INVALID_CONTEXT;
  });
}

CUresult cuCtxGetDevice(CUdevice* device) {
  return call(__func__, Needs::kContext, [&](Driver&, Lock&) -> CUresult {
    *device = current_device();
    return CUDA_SUCCESS;
  });
}

CUresult cuCtxGetStreamPriorityRange(int* least, int* greatest) {
  return call(__func__, Needs::kContext, [&](Driver&, Lock&) -> CUresult {
    if (least != nullptr) *least = 0;
    if (greatest != nullptr) *greatest = -5;
    return CUDA_SUCCESS;
  });
}

CUresult cuCtxSynchronize() {
  return call(__func__, Needs::kContext, [&](Driver& driver, Lock& lock) -> CUresult {
    CUresult refused = driver.check_unsafe_call();
    std::vector<std::pair<Ref<Queue::Progress>, uint32_t>> pending;
    const auto add = [&](const Ref<Stream>& stream) {
      if (!stream || stream->device != current_device()) return;
      if (stream->capture) refused = spoil(*stream->capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
      pending.emplace_back(stream->progress, stream->num_pushed);
    };
    for (const auto& [handle, stream] : driver.streams) add(stream);
    add(driver.contexts[static_cast<size_t>(current_device())].null_stream);
    if (refused != CUDA_SUCCESS) return refused;
    lock.unlock();
    for (const auto& [progress, target] : pending) progress->done.wait(target);
    return CUDA_SUCCESS;
  });
}

CUresult cuProfilerStart() {
  return call(__func__, Needs::kContext, [](Driver&, Lock&) -> CUresult { return CUDA_SUCCESS; });
}

CUresult cuProfilerStop() {
  return call(__func__, Needs::kContext, [](Driver&, Lock&) -> CUresult { return CUDA_SUCCESS; });
}

}  // namespace fake_cuda
