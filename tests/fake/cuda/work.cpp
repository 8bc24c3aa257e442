#include "work.h"

#include <unistd.h>

#include "settings.h"

namespace fake_cuda {
namespace {

std::atomic<bool> stopped{false};
thread_local bool calls_host_function = false;

}  // namespace

Jitter::Jitter(uint64_t number) noexcept : random_(settings().seed * 1'000'003 + number) {}

void Jitter::sleep() noexcept {
  if (settings().jitter_us == 0) return;
  usleep(static_cast<useconds_t>(random_.below(static_cast<int32_t>(settings().jitter_us) + 1)));
}

void stop_working() noexcept { stopped.store(true, std::memory_order_relaxed); }

void run(const Work& work, Jitter& jitter) {
  jitter.sleep();
  while (stopped.load(std::memory_order_relaxed)) pause();
  work();
}

bool in_host_function() noexcept { return calls_host_function; }

Work host_function(void (*function)(void*), void* argument) {
  return [function, argument] {
    calls_host_function = true;
    function(argument);
    calls_host_function = false;
  };
}

}  // namespace fake_cuda
