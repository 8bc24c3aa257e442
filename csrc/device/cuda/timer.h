// Times what is enqueued on streams, by the device's clock.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "device/cuda/memory.h"
#include "device/cuda/stream.h"

namespace pipert::cuda {

// A word of page-locked host memory that a stream waits for until the host opens it: so the device begins when all is
// enqueued, and is not kept waiting by the host. Only so much may be enqueued behind it as fits into the device's
// queues, some hundreds of entries.
class Gate {
 public:
  Gate();
  Gate(const Gate&) = delete;
  Gate& operator=(const Gate&) = delete;
  ~Gate();
  // One stream at a time.
  void hold(StreamView stream);
  bool holds() const noexcept { return holds_; }
  void open() noexcept;

 private:
  PinnedBuffer word_;
  Event passed_{Timing::kOff};
  uint32_t turn_ = 0;  // what the stream waits for
  bool holds_ = false;
};

// From start() to stop(), on one stream or on several: they begin together, and the last one to end counts.
class Timer {
 public:
  // With `held`, the streams go on only after release(): enqueue, stop(), release().
  void start(std::span<const StreamView> streams, bool held);
  void stop(std::span<const StreamView> streams);
  void release() noexcept { gate_.open(); }
  // Waits for the device. Throws ConfigError where nothing was stopped or released.
  int64_t ns() const;

 private:
  Gate gate_;
  Event begin_{Timing::kOn};
  Event end_{Timing::kOn};
  std::vector<Event> joined_;  // per stream beyond the first
  bool stopped_ = false;
};

}  // namespace pipert::cuda
