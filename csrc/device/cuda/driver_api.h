// The part of the CUDA driver's C interface that pipert calls, declared here so that every build holds the CUDA
// backend, also where no toolkit is installed. driver_api_check.cu compares these declarations with the toolkit's own.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pipert::cuda {

using Result = int;        // CUresult
using Device = int;        // CUdevice
using Address = uint64_t;  // CUdeviceptr
struct Context;            // CUctx_st
struct StreamHandle;       // CUstream_st
struct EventHandle;        // CUevent_st
struct GraphHandle;        // CUgraph_st
struct GraphExecHandle;    // CUgraphExec_st
using HostFunction = void (*)(void*);

struct IpcMemHandle {
  char reserved[64];
};

inline constexpr Result kSuccess = 0;
inline constexpr Result kOutOfMemory = 2;
inline constexpr Result kNoDevice = 100;
inline constexpr Result kNotReady = 600;

inline constexpr unsigned kStreamNonBlocking = 1;
inline constexpr unsigned kEventDisableTiming = 2;
inline constexpr unsigned kEventRecordExternal = 1;
inline constexpr unsigned kWaitValueEqual = 1;
inline constexpr unsigned kWriteValueDefault = 0;
inline constexpr unsigned kHostRegisterPortable = 1;
inline constexpr unsigned kHostRegisterDeviceMap = 2;
inline constexpr unsigned kIpcLazyEnablePeerAccess = 1;

// Name here, symbol in the library, arguments.
#define PIPERT_CUDA_FUNCTIONS(X)                                                                             \
  X(init, "cuInit", (unsigned))                                                                              \
  X(driver_get_version, "cuDriverGetVersion", (int*))                                                        \
  X(get_error_name, "cuGetErrorName", (Result, const char**))                                                \
  X(get_error_string, "cuGetErrorString", (Result, const char**))                                            \
  X(device_get, "cuDeviceGet", (Device*, int))                                                               \
  X(device_get_count, "cuDeviceGetCount", (int*))                                                            \
  X(primary_ctx_retain, "cuDevicePrimaryCtxRetain", (Context**, Device))                                     \
  X(ctx_get_current, "cuCtxGetCurrent", (Context**))                                                         \
  X(ctx_set_current, "cuCtxSetCurrent", (Context*))                                                          \
  X(ctx_get_stream_priority_range, "cuCtxGetStreamPriorityRange", (int*, int*))                              \
  X(stream_create_with_priority, "cuStreamCreateWithPriority", (StreamHandle**, unsigned, int))              \
  X(stream_destroy, "cuStreamDestroy_v2", (StreamHandle*))                                                   \
  X(stream_synchronize, "cuStreamSynchronize", (StreamHandle*))                                              \
  X(stream_wait_event, "cuStreamWaitEvent", (StreamHandle*, EventHandle*, unsigned))                         \
  X(stream_is_capturing, "cuStreamIsCapturing", (StreamHandle*, int*))                                       \
  X(stream_wait_value32, "cuStreamWaitValue32_v2", (StreamHandle*, Address, uint32_t, unsigned))             \
  X(stream_write_value32, "cuStreamWriteValue32_v2", (StreamHandle*, Address, uint32_t, unsigned))           \
  X(event_create, "cuEventCreate", (EventHandle**, unsigned))                                                \
  X(event_destroy, "cuEventDestroy_v2", (EventHandle*))                                                      \
  X(event_record, "cuEventRecord", (EventHandle*, StreamHandle*))                                            \
  X(event_record_with_flags, "cuEventRecordWithFlags", (EventHandle*, StreamHandle*, unsigned))              \
  X(event_query, "cuEventQuery", (EventHandle*))                                                             \
  X(event_synchronize, "cuEventSynchronize", (EventHandle*))                                                 \
  X(event_elapsed_time, "cuEventElapsedTime", (float*, EventHandle*, EventHandle*))                          \
  X(mem_alloc, "cuMemAlloc_v2", (Address*, size_t))                                                          \
  X(mem_free, "cuMemFree_v2", (Address))                                                                     \
  X(mem_host_alloc, "cuMemHostAlloc", (void**, size_t, unsigned))                                            \
  X(mem_free_host, "cuMemFreeHost", (void*))                                                                 \
  X(mem_host_register, "cuMemHostRegister_v2", (void*, size_t, unsigned))                                    \
  X(mem_host_unregister, "cuMemHostUnregister", (void*))                                                     \
  X(mem_host_get_device_pointer, "cuMemHostGetDevicePointer_v2", (Address*, void*, unsigned))                \
  X(memcpy_async, "cuMemcpyAsync", (Address, Address, size_t, StreamHandle*))                                \
  X(memset_d8_async, "cuMemsetD8Async", (Address, unsigned char, size_t, StreamHandle*))                     \
  X(mem_get_address_range, "cuMemGetAddressRange_v2", (Address*, size_t*, Address))                          \
  X(ipc_get_mem_handle, "cuIpcGetMemHandle", (IpcMemHandle*, Address))                                       \
  X(ipc_open_mem_handle, "cuIpcOpenMemHandle_v2", (Address*, IpcMemHandle, unsigned))                        \
  X(ipc_close_mem_handle, "cuIpcCloseMemHandle", (Address))                                                  \
  X(launch_host_func, "cuLaunchHostFunc", (StreamHandle*, HostFunction, void*))                              \
  X(stream_begin_capture, "cuStreamBeginCapture_v2", (StreamHandle*, int))                                   \
  X(stream_end_capture, "cuStreamEndCapture", (StreamHandle*, GraphHandle**))                                \
  X(graph_instantiate, "cuGraphInstantiateWithFlags", (GraphExecHandle**, GraphHandle*, unsigned long long)) \
  X(graph_launch, "cuGraphLaunch", (GraphExecHandle*, StreamHandle*))                                        \
  X(graph_exec_destroy, "cuGraphExecDestroy", (GraphExecHandle*))                                            \
  X(graph_destroy, "cuGraphDestroy", (GraphHandle*))

// One pointer per function.
struct DriverApi {
#define PIPERT_CUDA_POINTER(name, symbol, arguments) Result(*name) arguments = nullptr;
  PIPERT_CUDA_FUNCTIONS(PIPERT_CUDA_POINTER)
#undef PIPERT_CUDA_POINTER
};

}  // namespace pipert::cuda
