#include "device/cuda/timer.h"

#include <atomic>

#include "core/error.h"

namespace pipert::cuda {

Gate::Gate() : word_(sizeof(uint32_t)) { *reinterpret_cast<uint32_t*>(word_.data()) = 0; }

// The word must not go while a stream looks at it.
Gate::~Gate() {
  open();
  if (turn_ > 0) PIPERT_CUDA_REPORT(event_synchronize(passed_.view().get()));
}

void Gate::hold(StreamView stream) {
  ++turn_;
  holds_ = true;
  stream.wait_until_equal(word_.address(), turn_);
  stream.record(passed_.view());
}

void Gate::open() noexcept {
  holds_ = false;
  std::atomic_ref(*reinterpret_cast<uint32_t*>(word_.data())).store(turn_, std::memory_order_release);
}

void Timer::start(std::span<const StreamView> streams, bool held) {
  if (streams.empty()) throw ConfigError("a timer needs a stream");
  if (gate_.holds()) throw ConfigError("the timer's streams are still held: release them before");
  stopped_ = false;
  if (held) gate_.hold(streams.front());
  streams.front().record(begin_.view());
  for (const StreamView stream : streams.subspan(1)) stream.wait(begin_.view());
}

void Timer::stop(std::span<const StreamView> streams) {
  if (streams.empty()) throw ConfigError("a timer needs a stream");
  while (joined_.size() + 1 < streams.size()) joined_.emplace_back(Timing::kOff);
  for (size_t index = 1; index < streams.size(); ++index) {
    streams[index].record(joined_[index - 1].view());
    streams.front().wait(joined_[index - 1].view());
  }
  streams.front().record(end_.view());
  stopped_ = true;
}

int64_t Timer::ns() const {
  if (!stopped_) throw ConfigError("the timer was not stopped");
  if (gate_.holds()) throw ConfigError("the timer's streams are still held: release them before");
  end_.view().synchronize();
  return begin_.view().ns_until(end_.view());
}

}  // namespace pipert::cuda
