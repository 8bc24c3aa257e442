// The part of the CUDA driver API that the fake driver exports, declared as the real libcuda.so has it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fake_cuda {

using CUresult = int;
using CUdevice = int;
using CUdeviceptr = uint64_t;
using CUcontext = void*;
using CUstream = void*;
using CUevent = void*;
using CUgraph = void*;
using CUgraphExec = void*;
using CUhostFn = void (*)(void*);

struct CUipcMemHandle {
  char reserved[64];
};

enum : CUresult {
  CUDA_SUCCESS = 0,
  CUDA_ERROR_INVALID_VALUE = 1,
  CUDA_ERROR_OUT_OF_MEMORY = 2,
  CUDA_ERROR_NOT_INITIALIZED = 3,
  CUDA_ERROR_NO_DEVICE = 100,
  CUDA_ERROR_INVALID_DEVICE = 101,
  CUDA_ERROR_INVALID_CONTEXT = 201,
  CUDA_ERROR_MAP_FAILED = 205,
  CUDA_ERROR_INVALID_HANDLE = 400,
  CUDA_ERROR_ILLEGAL_STATE = 401,
  CUDA_ERROR_NOT_READY = 600,
  CUDA_ERROR_ILLEGAL_ADDRESS = 700,
  CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED = 712,
  CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED = 713,
  CUDA_ERROR_LAUNCH_FAILED = 719,
  CUDA_ERROR_NOT_PERMITTED = 800,
  CUDA_ERROR_NOT_SUPPORTED = 801,
  CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900,
  CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901,
  CUDA_ERROR_STREAM_CAPTURE_MERGE = 902,
  CUDA_ERROR_STREAM_CAPTURE_UNMATCHED = 903,
  CUDA_ERROR_STREAM_CAPTURE_UNJOINED = 904,
  CUDA_ERROR_STREAM_CAPTURE_ISOLATION = 905,
  CUDA_ERROR_STREAM_CAPTURE_IMPLICIT = 906,
  CUDA_ERROR_CAPTURED_EVENT = 907,
  CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD = 908,
  CUDA_ERROR_UNKNOWN = 999,
};

enum : unsigned {
  CU_STREAM_NON_BLOCKING = 1,
  CU_EVENT_BLOCKING_SYNC = 1,
  CU_EVENT_DISABLE_TIMING = 2,
  CU_EVENT_INTERPROCESS = 4,
  CU_EVENT_RECORD_EXTERNAL = 1,
  CU_EVENT_WAIT_EXTERNAL = 1,
  CU_STREAM_WAIT_VALUE_GEQ = 0,
  CU_STREAM_WAIT_VALUE_EQ = 1,
  CU_STREAM_WAIT_VALUE_AND = 2,
  CU_STREAM_WAIT_VALUE_NOR = 3,
  CU_STREAM_WAIT_VALUE_FLUSH = 1U << 30,
  CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS = 1,
};

enum : int {
  CU_STREAM_CAPTURE_MODE_GLOBAL = 0,
  CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1,
  CU_STREAM_CAPTURE_MODE_RELAXED = 2,
  CU_STREAM_CAPTURE_STATUS_NONE = 0,
  CU_STREAM_CAPTURE_STATUS_ACTIVE = 1,
  CU_STREAM_CAPTURE_STATUS_INVALIDATED = 2,
  CU_MEMORYTYPE_HOST = 1,
  CU_MEMORYTYPE_DEVICE = 2,
  CU_POINTER_ATTRIBUTE_CONTEXT = 1,
  CU_POINTER_ATTRIBUTE_MEMORY_TYPE = 2,
  CU_POINTER_ATTRIBUTE_DEVICE_POINTER = 3,
  CU_POINTER_ATTRIBUTE_HOST_POINTER = 4,
  CU_POINTER_ATTRIBUTE_BUFFER_ID = 7,
  CU_POINTER_ATTRIBUTE_IS_MANAGED = 8,
  CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL = 9,
  CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE = 10,
  CU_POINTER_ATTRIBUTE_RANGE_START_ADDR = 11,
  CU_POINTER_ATTRIBUTE_RANGE_SIZE = 12,
  CU_POINTER_ATTRIBUTE_MAPPED = 13,
};

#define FAKE_CUDA_EXPORT extern "C" __attribute__((visibility("default")))

FAKE_CUDA_EXPORT CUresult cuInit(unsigned flags);
FAKE_CUDA_EXPORT CUresult cuDriverGetVersion(int* version);
FAKE_CUDA_EXPORT CUresult cuGetErrorName(CUresult error, const char** name);
FAKE_CUDA_EXPORT CUresult cuGetErrorString(CUresult error, const char** text);

FAKE_CUDA_EXPORT CUresult cuDeviceGet(CUdevice* device, int ordinal);
FAKE_CUDA_EXPORT CUresult cuDeviceGetCount(int* count);
FAKE_CUDA_EXPORT CUresult cuDeviceGetName(char* name, int length, CUdevice device);
FAKE_CUDA_EXPORT CUresult cuDeviceGetAttribute(int* value, int attribute, CUdevice device);
FAKE_CUDA_EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device);
FAKE_CUDA_EXPORT CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device);
FAKE_CUDA_EXPORT CUresult cuCtxGetCurrent(CUcontext* context);
FAKE_CUDA_EXPORT CUresult cuCtxSetCurrent(CUcontext context);
FAKE_CUDA_EXPORT CUresult cuCtxGetDevice(CUdevice* device);
FAKE_CUDA_EXPORT CUresult cuCtxGetStreamPriorityRange(int* least, int* greatest);
FAKE_CUDA_EXPORT CUresult cuCtxSynchronize();

FAKE_CUDA_EXPORT CUresult cuStreamCreateWithPriority(CUstream* stream, unsigned flags, int priority);
FAKE_CUDA_EXPORT CUresult cuStreamDestroy_v2(CUstream stream);
FAKE_CUDA_EXPORT CUresult cuStreamSynchronize(CUstream stream);
FAKE_CUDA_EXPORT CUresult cuStreamQuery(CUstream stream);
FAKE_CUDA_EXPORT CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned flags);
FAKE_CUDA_EXPORT CUresult cuStreamIsCapturing(CUstream stream, int* status);

FAKE_CUDA_EXPORT CUresult cuEventCreate(CUevent* event, unsigned flags);
FAKE_CUDA_EXPORT CUresult cuEventDestroy_v2(CUevent event);
FAKE_CUDA_EXPORT CUresult cuEventRecord(CUevent event, CUstream stream);
FAKE_CUDA_EXPORT CUresult cuEventRecordWithFlags(CUevent event, CUstream stream, unsigned flags);
FAKE_CUDA_EXPORT CUresult cuEventQuery(CUevent event);
FAKE_CUDA_EXPORT CUresult cuEventSynchronize(CUevent event);
FAKE_CUDA_EXPORT CUresult cuEventElapsedTime(float* milliseconds, CUevent start, CUevent end);

FAKE_CUDA_EXPORT CUresult cuMemAlloc_v2(CUdeviceptr* address, size_t bytes);
FAKE_CUDA_EXPORT CUresult cuMemFree_v2(CUdeviceptr address);
FAKE_CUDA_EXPORT CUresult cuMemHostAlloc(void** address, size_t bytes, unsigned flags);
FAKE_CUDA_EXPORT CUresult cuMemFreeHost(void* address);
FAKE_CUDA_EXPORT CUresult cuMemHostRegister_v2(void* address, size_t bytes, unsigned flags);
FAKE_CUDA_EXPORT CUresult cuMemHostUnregister(void* address);
FAKE_CUDA_EXPORT CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr* device_address, void* address, unsigned flags);
FAKE_CUDA_EXPORT CUresult cuMemGetAddressRange_v2(CUdeviceptr* base, size_t* bytes, CUdeviceptr address);
FAKE_CUDA_EXPORT CUresult cuPointerGetAttribute(void* value, int attribute, CUdeviceptr address);

FAKE_CUDA_EXPORT CUresult cuIpcGetMemHandle(CUipcMemHandle* handle, CUdeviceptr address);
FAKE_CUDA_EXPORT CUresult cuIpcOpenMemHandle_v2(CUdeviceptr* address, CUipcMemHandle handle, unsigned flags);
FAKE_CUDA_EXPORT CUresult cuIpcCloseMemHandle(CUdeviceptr address);

FAKE_CUDA_EXPORT CUresult cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream);
FAKE_CUDA_EXPORT CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream);
FAKE_CUDA_EXPORT CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, CUstream stream);
FAKE_CUDA_EXPORT CUresult cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, CUstream stream);
FAKE_CUDA_EXPORT CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t bytes, CUstream stream);
FAKE_CUDA_EXPORT CUresult cuStreamWaitValue32_v2(CUstream stream, CUdeviceptr address, uint32_t value, unsigned flags);
FAKE_CUDA_EXPORT CUresult cuStreamWriteValue32_v2(CUstream stream, CUdeviceptr address, uint32_t value, unsigned flags);
FAKE_CUDA_EXPORT CUresult cuLaunchHostFunc(CUstream stream, CUhostFn function, void* argument);

FAKE_CUDA_EXPORT CUresult cuStreamBeginCapture_v2(CUstream stream, int mode);
FAKE_CUDA_EXPORT CUresult cuStreamEndCapture(CUstream stream, CUgraph* graph);
FAKE_CUDA_EXPORT CUresult cuGraphInstantiateWithFlags(CUgraphExec* exec, CUgraph graph, unsigned long long flags);
FAKE_CUDA_EXPORT CUresult cuGraphLaunch(CUgraphExec exec, CUstream stream);
FAKE_CUDA_EXPORT CUresult cuGraphExecDestroy(CUgraphExec exec);
FAKE_CUDA_EXPORT CUresult cuGraphDestroy(CUgraph graph);

FAKE_CUDA_EXPORT CUresult cuProfilerStart();
FAKE_CUDA_EXPORT CUresult cuProfilerStop();

}  // namespace fake_cuda
