// Streams.

#include "driver.h"

namespace fake_cuda {

CUresult cuStreamCreateWithPriority(CUstream* stream, unsigned flags, int) {
  return call(__func__, Needs::kContext, [&](Driver& driver, Lock&) -> CUresult {
    if ((flags & ~CU_STREAM_NON_BLOCKING) != 0) return CUDA_ERROR_INVALID_VALUE;
    *stream = driver.streams.add(make<Stream>(current_device(), driver.next_queue()));
    return CUDA_SUCCESS;
  });
}

// What was enqueued is still done.
CUresult cuStreamDestroy_v2(CUstream handle) {
  return call(__func__, Needs::kContext, [&](Driver& driver, Lock&) -> CUresult {
    const Ref<Stream> stream = driver.streams.remove(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (stream->capture) spoil(*stream->capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    if (settings().max_connections == 0) stream->queue->close();
    return CUDA_SUCCESS;
  });
}

CUresult cuStreamSynchronize(CUstream handle) {
  return call(__func__, Needs::kContext, [&](Driver& driver, Lock& lock) -> CUresult {
    const Ref<Stream> stream = driver.find_stream(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (stream->capture) return spoil(*stream->capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    const uint32_t target = stream->num_pushed;
    lock.unlock();
    stream->progress->done.wait(target);
    return CUDA_SUCCESS;
  });
}

CUresult cuStreamQuery(CUstream handle) {
  return call(__func__, Needs::kContext, [&](Driver& driver, Lock&) -> CUresult {
    const Ref<Stream> stream = driver.find_stream(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (stream->capture) return spoil(*stream->capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    return stream->progress->done.reached(stream->num_pushed) ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
  });
}

CUresult cuStreamWaitEvent(CUstream handle, CUevent event_handle, unsigned flags) {
  return call(__func__, Needs::kContext, [&](Driver& driver, Lock&) -> CUresult {
    const Ref<Stream> stream = driver.find_stream(handle);
    const Ref<Event> event = driver.events.find(event_handle);
    if (!stream || !event) return CUDA_ERROR_INVALID_HANDLE;
    if ((flags & ~CU_EVENT_WAIT_EXTERNAL) != 0) return CUDA_ERROR_INVALID_VALUE;
    return await(stream, event, flags == CU_EVENT_WAIT_EXTERNAL);
  });
}

CUresult cuStreamIsCapturing(CUstream handle, int* status) {
  return call(__func__, Needs::kContext, [&](Driver& driver, Lock&) -> CUresult {
    const Ref<Stream> stream = driver.find_stream(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    *status = !stream->capture         ? CU_STREAM_CAPTURE_STATUS_NONE
              : stream->capture->valid ? CU_STREAM_CAPTURE_STATUS_ACTIVE
                                       : CU_STREAM_CAPTURE_STATUS_INVALIDATED;
    return CUDA_SUCCESS;
  });
}

}  // namespace fake_cuda
