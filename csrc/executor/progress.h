// Where the thread that called step stands, and what that makes of a failure. Read from any thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

#include "core/failure.h"
#include "plan/plan.h"

namespace pipert {

struct Progress {
  std::atomic<int32_t> current{-1};  // the op that the thread runs or is about to run
  std::atomic<int32_t> awaited{-1};  // the op that it waits for; -1 while it does not wait
  std::atomic<int64_t> step{-1};     // as the caller counts

  // The op that a failure now is about; -1: none.
  int32_t op() const noexcept {
    const int32_t waits_for = awaited.load(std::memory_order_relaxed);
    return waits_for >= 0 ? waits_for : current.load(std::memory_order_relaxed);
  }
  void clear() noexcept {
    current.store(-1, std::memory_order_relaxed);
    awaited.store(-1, std::memory_order_relaxed);
  }
};

// Throws what `failure` is for the caller of step: PeerLost, TransportError, LaneTimeout, or Error.
[[noreturn]] void throw_failure(const Failure& failure, const Plan& plan, const Progress& progress);

}  // namespace pipert
