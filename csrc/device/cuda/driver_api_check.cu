// Compares driver_api.h with the toolkit's cuda.h, at compile time.
#include <cuda.h>

#include <type_traits>

#include "device/cuda/driver_api.h"

namespace pipert::cuda {

static_assert(sizeof(IpcMemHandle) == sizeof(CUipcMemHandle) && alignof(IpcMemHandle) == alignof(CUipcMemHandle));
static_assert(std::is_same_v<Device, CUdevice> && sizeof(Address) == sizeof(CUdeviceptr));
static_assert(std::is_same_v<HostFunction, CUhostFn>);
static_assert(kSuccess == CUDA_SUCCESS && kOutOfMemory == CUDA_ERROR_OUT_OF_MEMORY);
static_assert(kNoDevice == CUDA_ERROR_NO_DEVICE && kNotReady == CUDA_ERROR_NOT_READY);
static_assert(kStreamNonBlocking == CU_STREAM_NON_BLOCKING && kEventDisableTiming == CU_EVENT_DISABLE_TIMING);
static_assert(kEventRecordExternal == CU_EVENT_RECORD_EXTERNAL);
static_assert(kWaitValueEqual == CU_STREAM_WAIT_VALUE_EQ && kWriteValueDefault == CU_STREAM_WRITE_VALUE_DEFAULT);
static_assert(kHostRegisterPortable == CU_MEMHOSTREGISTER_PORTABLE);
static_assert(kHostRegisterPortable == CU_MEMHOSTALLOC_PORTABLE);
static_assert(kHostRegisterDeviceMap == CU_MEMHOSTREGISTER_DEVICEMAP);
static_assert(kIpcLazyEnablePeerAccess == CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS);

// As many arguments, of the same sizes, where the toolkit's header declares the function under the symbol's name.
template <typename... Mine, typename... Theirs>
constexpr bool alike(Result (*)(Mine...), CUresult (*)(Theirs...)) {
  if constexpr (sizeof...(Mine) != sizeof...(Theirs)) {
    return false;
  } else {
    return ((sizeof(Mine) == sizeof(Theirs)) && ...);
  }
}
#define PIPERT_CUDA_ALIKE(name, function) \
  static_assert(alike(decltype(DriverApi::name){}, static_cast<decltype(&function)>(nullptr)))

PIPERT_CUDA_ALIKE(init, cuInit);
PIPERT_CUDA_ALIKE(driver_get_version, cuDriverGetVersion);
PIPERT_CUDA_ALIKE(get_error_name, cuGetErrorName);
PIPERT_CUDA_ALIKE(get_error_string, cuGetErrorString);
PIPERT_CUDA_ALIKE(device_get, cuDeviceGet);
PIPERT_CUDA_ALIKE(device_get_count, cuDeviceGetCount);
PIPERT_CUDA_ALIKE(primary_ctx_retain, cuDevicePrimaryCtxRetain);
PIPERT_CUDA_ALIKE(ctx_get_current, cuCtxGetCurrent);
PIPERT_CUDA_ALIKE(ctx_set_current, cuCtxSetCurrent);
PIPERT_CUDA_ALIKE(ctx_get_stream_priority_range, cuCtxGetStreamPriorityRange);
PIPERT_CUDA_ALIKE(stream_create_with_priority, cuStreamCreateWithPriority);
PIPERT_CUDA_ALIKE(stream_destroy, cuStreamDestroy);
PIPERT_CUDA_ALIKE(stream_synchronize, cuStreamSynchronize);
PIPERT_CUDA_ALIKE(stream_wait_event, cuStreamWaitEvent);
PIPERT_CUDA_ALIKE(stream_is_capturing, cuStreamIsCapturing);
PIPERT_CUDA_ALIKE(stream_wait_value32, cuStreamWaitValue32);
PIPERT_CUDA_ALIKE(stream_write_value32, cuStreamWriteValue32);
PIPERT_CUDA_ALIKE(event_create, cuEventCreate);
PIPERT_CUDA_ALIKE(event_destroy, cuEventDestroy);
PIPERT_CUDA_ALIKE(event_record, cuEventRecord);
PIPERT_CUDA_ALIKE(event_record_with_flags, cuEventRecordWithFlags);
PIPERT_CUDA_ALIKE(event_query, cuEventQuery);
PIPERT_CUDA_ALIKE(event_synchronize, cuEventSynchronize);
PIPERT_CUDA_ALIKE(event_elapsed_time, cuEventElapsedTime);
PIPERT_CUDA_ALIKE(mem_alloc, cuMemAlloc);
PIPERT_CUDA_ALIKE(mem_free, cuMemFree);
PIPERT_CUDA_ALIKE(mem_host_alloc, cuMemHostAlloc);
PIPERT_CUDA_ALIKE(mem_free_host, cuMemFreeHost);
PIPERT_CUDA_ALIKE(mem_host_register, cuMemHostRegister);
PIPERT_CUDA_ALIKE(mem_host_unregister, cuMemHostUnregister);
PIPERT_CUDA_ALIKE(mem_host_get_device_pointer, cuMemHostGetDevicePointer);
PIPERT_CUDA_ALIKE(memcpy_async, cuMemcpyAsync);
PIPERT_CUDA_ALIKE(memset_d8_async, cuMemsetD8Async);
PIPERT_CUDA_ALIKE(mem_get_address_range, cuMemGetAddressRange);
PIPERT_CUDA_ALIKE(ipc_get_mem_handle, cuIpcGetMemHandle);
PIPERT_CUDA_ALIKE(ipc_open_mem_handle, cuIpcOpenMemHandle);
PIPERT_CUDA_ALIKE(ipc_close_mem_handle, cuIpcCloseMemHandle);
PIPERT_CUDA_ALIKE(launch_host_func, cuLaunchHostFunc);
PIPERT_CUDA_ALIKE(stream_begin_capture, cuStreamBeginCapture);
PIPERT_CUDA_ALIKE(stream_end_capture, cuStreamEndCapture);
PIPERT_CUDA_ALIKE(graph_instantiate, cuGraphInstantiateWithFlags);
PIPERT_CUDA_ALIKE(graph_launch, cuGraphLaunch);
PIPERT_CUDA_ALIKE(graph_exec_destroy, cuGraphExecDestroy);
PIPERT_CUDA_ALIKE(graph_destroy, cuGraphDestroy);

}  // namespace pipert::cuda
