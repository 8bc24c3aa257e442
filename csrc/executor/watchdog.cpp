#include "executor/watchdog.h"

#include <optional>
#include <utility>

#include "core/clock.h"
#include "core/error.h"
#include "core/log.h"

namespace pipert {
namespace {

constexpr int64_t kSliceNs = 20'000'000;        // between two looks
constexpr int64_t kReleaseSliceNs = 1'000'000;  // and after a failure

}  // namespace

Watchdog::Watchdog(DeviceChannels& channels, int64_t timeout_ns, std::function<std::string()> overdue)
    : channels_(channels),
      timeout_ns_(timeout_ns),
      overdue_(std::move(overdue)),
      thread_("pipert-device", [this] { loop(); }) {}

Watchdog::~Watchdog() {
  thread_.join([this] {
    stop_.store(true);
    nudges_.advance();
  });
}

void Watchdog::expect(cuda::EventView end) {
  const std::lock_guard lock(mutex_);
  end_ = end;
  deadline_ns_ = now_ns() + timeout_ns_;
}

void Watchdog::pause() {
  const std::lock_guard lock(mutex_);
  paused_ = true;
}

void Watchdog::resume() {
  const std::lock_guard lock(mutex_);
  paused_ = false;
}

void Watchdog::loop() {
  if (cuda::driver().ctx_set_current(channels_.context()) != cuda::kSuccess) {
    log_warning("the watchdog of the device cannot use its context: a lost peer will not be noticed in time");
    return;
  }
  while (!stop_.load()) {
    const bool failed = channels_.host().failure().raised();
    if (failed) {
      channels_.release();
    } else {
      look();
    }
    nudges_.sleep(1, failed ? kReleaseSliceNs : kSliceNs);
  }
}

void Watchdog::look() {
  const std::lock_guard lock(mutex_);
  if (paused_ || !end_) return;
  try {
    if (const std::optional<std::string> fault = channels_.fault()) throw TransportError(*fault);
    if (end_.happened()) {
      end_ = {};
    } else if (now_ns() > deadline_ns_) {
      channels_.host().fail(
          {.kind = FailureKind::kTimeout, .rank = channels_.host().rank(), .op = {}, .text = overdue_()});
    }
  } catch (const Error& error) {
    end_ = {};
    channels_.host().fail(
        {.kind = FailureKind::kTransport, .rank = channels_.host().rank(), .op = {}, .text = error.what()});
  }
}

}  // namespace pipert
