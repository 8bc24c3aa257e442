// Events.

#include "driver.h"

namespace fake_cuda {
namespace {

// Looking at an event in a way that a capture forbids: CUDA_SUCCESS where none does.
CUresult check_looked_at(Driver& driver, const Event& event) {
  if (event.capture && event.capture->active) return spoil(*event.capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
  if (const CUresult error = driver.check_unsafe_call()) return error;
  return event.capture ? CUDA_ERROR_CAPTURED_EVENT : CUDA_SUCCESS;
}

CUresult record_with_flags(Driver& driver, CUevent event_handle, CUstream stream_handle, unsigned flags) {
  const Ref<Event> event = driver.events.find(event_handle);
  const Ref<Stream> stream = driver.find_stream(stream_handle);
  if (!event || !stream || event->device != stream->device) return CUDA_ERROR_INVALID_HANDLE;
  if ((flags & ~CU_EVENT_RECORD_EXTERNAL) != 0) return CUDA_ERROR_INVALID_VALUE;
  return record(event, *stream, flags == CU_EVENT_RECORD_EXTERNAL);
}

}  // namespace

CUresult cuEventCreate(CUevent* event, unsigned flags) {
  return call(__func__, Needs::kContext, [&](Driver& driver, Lock&) -> CUresult {
    const bool interprocess = (flags & CU_EVENT_INTERPROCESS) != 0;
    if (flags > 7 || (interprocess && (flags & CU_EVENT_DISABLE_TIMING) == 0)) return CUDA_ERROR_INVALID_VALUE;
    *event = driver.events.add(make<Event>(current_device(), flags));
    return CUDA_SUCCESS;
  });
}

CUresult cuEventDestroy_v2(CUevent event) {
  return call(__func__, Needs::kContext, [&](Driver& driver, Lock&) -> CUresult {
    return driver.events.remove(event) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
  });
}

CUresult cuEventRecord(CUevent event, CUstream stream) {
  return call(__func__, Needs::kContext,
              [&](Driver& driver, Lock&) { return record_with_flags(driver, event, stream, 0); });
}

CUresult cuEventRecordWithFlags(CUevent event, CUstream stream, unsigned flags) {
  return call(__func__, Needs::kContext,
              [&](Driver& driver, Lock&) { return record_with_flags(driver, event, stream, flags); });
}

CUresult cuEventQuery(CUevent handle) {
  return call(__func__, Needs::kInit, [&](Driver& driver, Lock&) -> CUresult {
    const Ref<Event> event = driver.events.find(handle);
    if (!event) return CUDA_ERROR_INVALID_HANDLE;
    if (const CUresult error = check_looked_at(driver, *event)) return error;
    return !event->latest || event->latest->done() ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
  });
}

CUresult cuEventSynchronize(CUevent handle) {
  return call(__func__, Needs::kContext, [&](Driver& driver, Lock& lock) -> CUresult {
    const Ref<Event> event = driver.events.find(handle);
    if (!event) return CUDA_ERROR_INVALID_HANDLE;
    if (const CUresult error = check_looked_at(driver, *event)) return error;
    const Ref<Record> latest = event->latest;
    lock.unlock();
    if (latest) latest->wait();
    return CUDA_SUCCESS;
  });
}

CUresult cuEventElapsedTime(float* milliseconds, CUevent start_handle, CUevent end_handle) {
  return call(__func__, Needs::kContext, [&](Driver& driver, Lock&) -> CUresult {
    const Ref<Event> start = driver.events.find(start_handle);
    const Ref<Event> end = driver.events.find(end_handle);
    for (const Ref<Event>& event : {start, end}) {
      if (!event || (event->flags & CU_EVENT_DISABLE_TIMING) != 0 || !event->latest) return CUDA_ERROR_INVALID_HANDLE;
    }
    if (!start->latest->done() || !end->latest->done()) return CUDA_ERROR_NOT_READY;
    *milliseconds = static_cast<float>(end->latest->time_ns() - start->latest->time_ns()) * 1e-6F;
    return CUDA_SUCCESS;
  });
}

}  // namespace fake_cuda
