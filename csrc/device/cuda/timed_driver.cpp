#include "device/cuda/timed_driver.h"

#include <algorithm>
#include <array>
#include <atomic>

#include "core/clock.h"
#include "core/error.h"

namespace pipert::cuda {
namespace {

enum class Phase { kNotOpened, kAsked, kOpened };
std::atomic<Phase> phase{Phase::kNotOpened};

#define PIPERT_CUDA_INDEX(name, symbol, arguments) k_##name,
enum Index { PIPERT_CUDA_FUNCTIONS(PIPERT_CUDA_INDEX) kNumFunctions };
#undef PIPERT_CUDA_INDEX

#define PIPERT_CUDA_NAME(name, symbol, arguments) #name,
constexpr std::array<const char*, kNumFunctions> kNames{PIPERT_CUDA_FUNCTIONS(PIPERT_CUDA_NAME)};
#undef PIPERT_CUDA_NAME

struct Sum {
  int64_t calls = 0;
  int64_t ns = 0;
};

thread_local std::array<Sum, kNumFunctions> sums;
const DriverApi* real_api = nullptr;

template <Index index, auto Member>
struct Timed;

template <Index index, typename... Arguments, Result (*DriverApi::*Member)(Arguments...)>
struct Timed<index, Member> {
  static Result call(Arguments... arguments) {
    const int64_t begin_ns = now_ns();
    const Result result = (real_api->*Member)(arguments...);
    Sum& sum = sums[index];
    sum.ns += now_ns() - begin_ns;
    ++sum.calls;
    return result;
  }
};

// What a call of a function that does nothing would show.
int64_t clock_ns() {
  constexpr int kReadings = 1000;
  const int64_t begin_ns = now_ns();
  for (int reading = 0; reading < kReadings; ++reading) static_cast<void>(now_ns());
  return (now_ns() - begin_ns) / kReadings;
}

}  // namespace

void time_driver_calls() {
  Phase expected = Phase::kNotOpened;
  if (!phase.compare_exchange_strong(expected, Phase::kAsked) && expected == Phase::kOpened) {
    throw ConfigError("the driver's calls can be timed only if that is asked for before the first of them");
  }
}

DriverApi timed_if_asked(const DriverApi& real) {
  if (phase.exchange(Phase::kOpened) != Phase::kAsked) return real;
  real_api = &real;
  DriverApi timed;
#define PIPERT_CUDA_TIME(name, symbol, arguments) timed.name = &Timed<k_##name, &DriverApi::name>::call;
  PIPERT_CUDA_FUNCTIONS(PIPERT_CUDA_TIME)
#undef PIPERT_CUDA_TIME
  return timed;
}

std::vector<CallTime> take_call_times() {
  static const int64_t each_ns = clock_ns();
  std::vector<CallTime> times;
  for (size_t index = 0; index < sums.size(); ++index) {
    const Sum sum = sums[index];
    if (sum.calls == 0) continue;
    times.push_back(
        {.name = kNames[index], .calls = sum.calls, .ns = std::max<int64_t>(0, sum.ns - sum.calls * each_ns)});
  }
  sums = {};
  return times;
}

}  // namespace pipert::cuda
