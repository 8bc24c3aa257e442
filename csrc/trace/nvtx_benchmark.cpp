#include "trace/nvtx_benchmark.h"

#include <algorithm>
#include <string>
#include <vector>

#include "core/clock.h"
#include "core/error.h"
#include "trace/nvtx.h"

namespace pipert {
namespace {

constexpr int64_t kRounds = 32;

// The compiler must take it that the value is looked at, and changed, here.
template <typename T>
void touch(T& value) {
  asm volatile("" : "+r"(value) : : "memory");
}

template <typename Body>
double time_ns(int64_t turns, Body body) {
  const int64_t begin_ns = now_ns();
  for (int64_t turn = 0; turn < turns; ++turn) {
    touch(turn);
    body();
  }
  return static_cast<double>(now_ns() - begin_ns) / static_cast<double>(turns);
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

}  // namespace

NvtxCost nvtx_benchmark(int64_t iterations) {
  if (iterations <= 0) throw ConfigError("iterations must be positive, got " + std::to_string(iterations));
  NvtxDomain* const domain = NvtxDomain::get();
  if (domain == nullptr)
    throw ConfigError("this core was built without NVTX: pip install nvidia-nvtx, and build again");
  const NvtxOp off;
  const NvtxOp on = domain->op("0F0", 0, 0);
  const auto range_of = [](const NvtxOp& op) {
    return [shown = &op]() mutable {
      touch(shown);
      const NvtxRange range(*shown, 0);
      touch(shown);
    };
  };
  std::vector<double> loop_ns;
  std::vector<double> off_ns;
  std::vector<double> on_ns;
  const int64_t turns = std::max<int64_t>(iterations / kRounds, 1);
  for (int64_t round = 0; round < kRounds; ++round) {
    loop_ns.push_back(time_ns(turns, [] {}));
    off_ns.push_back(time_ns(turns, range_of(off)));
    on_ns.push_back(time_ns(turns, range_of(on)));
  }
  return {.loop_ns = median(loop_ns), .off_ns = median(off_ns), .on_ns = median(on_ns)};
}

}  // namespace pipert
