// A device of the fake CUDA driver, for tests that need streams and memory.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "driver_api.h"
#include "expect.h"

#define OK(call) EXPECT((call) == fake_cuda::CUDA_SUCCESS)

inline fake_cuda::CUcontext use_device(int ordinal = 0) {
  fake_cuda::CUdevice device = -1;
  fake_cuda::CUcontext context = nullptr;
  OK(fake_cuda::cuInit(0));
  OK(fake_cuda::cuDeviceGet(&device, ordinal));
  OK(fake_cuda::cuDevicePrimaryCtxRetain(&context, device));
  OK(fake_cuda::cuCtxSetCurrent(context));
  return context;
}

inline fake_cuda::CUstream make_stream() {
  fake_cuda::CUstream stream = nullptr;
  OK(fake_cuda::cuStreamCreateWithPriority(&stream, fake_cuda::CU_STREAM_NON_BLOCKING, -1));
  return stream;
}

inline uint64_t allocate(size_t bytes) {
  uint64_t address = 0;
  OK(fake_cuda::cuMemAlloc_v2(&address, bytes));
  return address;
}

template <class Type>
Type* at(uint64_t address) {
  return reinterpret_cast<Type*>(address);
}

inline std::atomic_ref<uint32_t> word(uint64_t address) { return std::atomic_ref<uint32_t>(*at<uint32_t>(address)); }

inline bool filled(uint64_t address, unsigned char value, size_t bytes) {
  const auto* const place = at<unsigned char>(address);
  return std::all_of(place, place + bytes, [&](unsigned char found) { return found == value; });
}

// A stream gets past a gate once it was opened.
struct Gate {
  Gate() : flag(allocate(4)) { word(flag).store(0); }
  void hold(fake_cuda::CUstream stream) const {
    OK(fake_cuda::cuStreamWaitValue32_v2(stream, flag, 1, fake_cuda::CU_STREAM_WAIT_VALUE_GEQ));
  }
  void open() const { word(flag).store(1); }
  uint64_t flag;
};
