// A number that only grows, and that others can wait for: the one event of the host backend.
#pragma once

#include <atomic>
#include <cstdint>

#include "core/futex.h"

namespace pipert {

// Lies in private memory (lane cursors) or in memory shared by two processes (channels); all zeros is its start.
//
// No wake-up is lost: advance() changes `value` and then looks at `sleepers`; sleep() announces itself in `sleepers`
// and then looks at `value`. Both are sequentially consistent, so one of the two sees the other. A sleeper that was
// seen is woken by a change of `word`, which it read before it looked at `value`.
class alignas(64) Counter {
 public:
  uint64_t value() const noexcept { return value_.load(std::memory_order_acquire); }
  bool reached(uint64_t target) const noexcept { return value() >= target; }

  // Everything written before is visible to whoever sees the new value.
  void advance() noexcept {
    value_.fetch_add(1, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) == 0) return;
    word_.fetch_add(1, std::memory_order_seq_cst);
    futex::wake_all(word_);
  }

  // Sleeps until `target` is reached, at most `timeout_ns`; says whether it is.
  bool sleep(uint64_t target, int64_t timeout_ns) noexcept {
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    const uint32_t word = word_.load(std::memory_order_seq_cst);
    if (value_.load(std::memory_order_seq_cst) < target) futex::wait(word_, word, timeout_ns);
    sleepers_.fetch_sub(1, std::memory_order_seq_cst);
    return reached(target);
  }

  // Looks again and again for at most `spin_ns`; says whether `target` is reached.
  bool spin(uint64_t target, int64_t spin_ns) const noexcept;

 private:
  std::atomic<uint64_t> value_{0};
  std::atomic<uint32_t> sleepers_{0};  // stays too high if a sleeping process dies: then wake-ups are only wasted
  std::atomic<uint32_t> word_{0};      // what sleepers sleep on
};

static_assert(sizeof(Counter) == 64);

}  // namespace pipert
