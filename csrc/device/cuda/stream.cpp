#include "device/cuda/stream.h"

#include <cmath>

namespace pipert::cuda {

bool EventView::happened() const {
  const Result result = driver().event_query(handle_);
  if (result == kNotReady) return false;
  if (result != kSuccess) fail_call("event_query(handle_)", result);
  return true;
}

int64_t EventView::ns_until(EventView later) const {
  float ms = 0;
  PIPERT_CUDA_TRY(event_elapsed_time(&ms, handle_, later.handle_));
  return std::llround(static_cast<double>(ms) * 1e6);
}

bool StreamView::capturing() const {
  int status = 0;
  PIPERT_CUDA_TRY(stream_is_capturing(handle_, &status));
  return status != 0;
}

int highest_priority() {
  int lowest = 0;
  int highest = 0;
  PIPERT_CUDA_TRY(ctx_get_stream_priority_range(&lowest, &highest));
  return highest;
}

}  // namespace pipert::cuda
