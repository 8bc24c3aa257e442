#include "core/counter.h"

#include <sched.h>

#include "core/clock.h"

namespace pipert {
namespace {

inline void pause() noexcept {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

bool Counter::spin(uint64_t target, int64_t spin_ns) const noexcept {
  if (reached(target)) return true;
  if (spin_ns <= 0) return false;
  const int64_t end = now_ns() + spin_ns;
  do {
    for (int i = 0; i < 32; ++i) {
      if (reached(target)) return true;
      pause();
    }
    sched_yield();  // whoever is to advance it may be waiting for this very core
  } while (now_ns() < end);
  return reached(target);
}

}  // namespace pipert
