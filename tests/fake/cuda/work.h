// What streams do, and what they wait for.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>

#include "core/clock.h"
#include "core/futex.h"
#include "core/random.h"
#include "shared.h"

namespace fake_cuda {

using Work = std::function<void()>;

// A number that only grows; it wraps around.
class Count {
 public:
  // The caller is the only one who advances.
  void advance() noexcept {
    word_.store(word_.load(std::memory_order_relaxed) + 1, std::memory_order_release);
    pipert::futex::wake_all(word_);
  }
  // Acquires only once it is reached.
  bool reached(uint32_t target) const noexcept {
    return past(word_.load(std::memory_order_relaxed), target) && past(word_.load(std::memory_order_acquire), target);
  }
  void wait(uint32_t target) const noexcept {
    while (!reached(target)) {
      const uint32_t seen = word_.load(std::memory_order_relaxed);
      if (!past(seen, target)) pipert::futex::wait(word_, seen, 100'000'000);
    }
  }

 private:
  static bool past(uint32_t value, uint32_t target) noexcept { return static_cast<int32_t>(value - target) >= 0; }

  std::atomic<uint32_t> word_{0};
};

// One record of an event.
class Record : public Shared {
 public:
  void complete() noexcept {
    time_ns_ = pipert::now_ns();
    done_.advance();
  }
  bool done() const noexcept { return done_.reached(1); }
  void wait() const noexcept { done_.wait(1); }
  int64_t time_ns() const noexcept { return time_ns_; }  // once done

 private:
  int64_t time_ns_ = 0;
  Count done_;
};

// Sleeps for a while that chance decides (FAKE_CUDA_JITTER_US).
class Jitter {
 public:
  explicit Jitter(uint64_t number) noexcept;
  void sleep() noexcept;

 private:
  pipert::Random random_;
};

// Once the process exits no work is begun any more: what it would touch may be gone.
void stop_working() noexcept;
void run(const Work& work, Jitter& jitter);

// A call of the driver from a host function is refused.
bool in_host_function() noexcept;
Work host_function(void (*function)(void*), void* argument);

}  // namespace fake_cuda
