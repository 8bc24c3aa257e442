// Streams and events: one move-only owner for each, and cheap views beside them.
#pragma once

#include <cstdint>
#include <utility>

#include "device/cuda/driver.h"

namespace pipert::cuda {

class EventView {
 public:
  EventView() = default;
  explicit EventView(EventHandle* handle) noexcept : handle_(handle) {}
  EventHandle* get() const noexcept { return handle_; }
  explicit operator bool() const noexcept { return handle_ != nullptr; }

  // Whether what was recorded has happened. Throws CudaError when the device has failed.
  bool happened() const;
  void synchronize() const { PIPERT_CUDA_TRY(event_synchronize(handle_)); }
  // From this event to `later`; both have timing and have happened.
  int64_t ns_until(EventView later) const;

 private:
  EventHandle* handle_ = nullptr;
};

enum class Timing { kOff, kOn };

class Event {
 public:
  explicit Event(Timing timing) {
    PIPERT_CUDA_TRY(event_create(&handle_, timing == Timing::kOn ? 0 : kEventDisableTiming));
  }
  Event(Event&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Event& operator=(Event&&) = delete;
  ~Event() {
    if (handle_ != nullptr) PIPERT_CUDA_REPORT(event_destroy(handle_));
  }
  EventView view() const noexcept { return EventView(handle_); }

 private:
  EventHandle* handle_ = nullptr;
};

class StreamView {
 public:
  StreamView() = default;
  explicit StreamView(StreamHandle* handle) noexcept : handle_(handle) {}
  StreamHandle* get() const noexcept { return handle_; }

  void record(EventView event) const { PIPERT_CUDA_TRY(event_record(event.get(), handle_)); }
  // An event that is queried or timed later. While the stream is captured it is recorded anew by each launch.
  void record_for_host(EventView event, bool capturing) const {
    PIPERT_CUDA_TRY(event_record_with_flags(event.get(), handle_, capturing ? kEventRecordExternal : 0));
  }
  void wait(EventView event) const { PIPERT_CUDA_TRY(stream_wait_event(handle_, event.get(), 0)); }
  void wait_until_equal(Address word, uint32_t value) const {
    PIPERT_CUDA_TRY(stream_wait_value32(handle_, word, value, kWaitValueEqual));
  }
  // What was enqueued before is visible to whoever sees the value, on other devices too.
  void write(Address word, uint32_t value) const {
    PIPERT_CUDA_TRY(stream_write_value32(handle_, word, value, kWriteValueDefault));
  }
  void copy(Address to, Address from, size_t num_bytes) const {
    PIPERT_CUDA_TRY(memcpy_async(to, from, num_bytes, handle_));
  }
  bool capturing() const;
  void synchronize() const { PIPERT_CUDA_TRY(stream_synchronize(handle_)); }

 private:
  StreamHandle* handle_ = nullptr;
};

// Does not wait for the null stream. `priority`: 0 is the lowest, smaller numbers are higher.
class Stream {
 public:
  explicit Stream(int priority) {
    PIPERT_CUDA_TRY(stream_create_with_priority(&handle_, kStreamNonBlocking, priority));
  }
  Stream(Stream&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Stream& operator=(Stream&&) = delete;
  ~Stream() {
    if (handle_ != nullptr) PIPERT_CUDA_REPORT(stream_destroy(handle_));
  }
  StreamView view() const noexcept { return StreamView(handle_); }

 private:
  StreamHandle* handle_ = nullptr;
};

// The highest priority of the current device.
int highest_priority();

}  // namespace pipert::cuda
