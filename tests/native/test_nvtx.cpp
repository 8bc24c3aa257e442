// Showing ops to NVTX: who decides, and ranges from several threads. A tool that NVTX_INJECTION64_PATH names logs them
// to the file PIPERT_TEST_NVTX_LOG; without one they are shown to nobody. An argument says whether NVTX should be
// there.

#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "core/error.h"
#include "expect.h"
#include "trace/nvtx.h"
#include "trace/nvtx_benchmark.h"

namespace {

using namespace pipert;

constexpr int kThreads = 4;
constexpr int kRanges = 50;

bool has_tool() { return std::getenv("NVTX_INJECTION64_PATH") != nullptr; }

size_t count_in_log(const std::string& part) {
  std::FILE* const file = std::fopen(std::getenv("PIPERT_TEST_NVTX_LOG"), "r");
  EXPECT(file != nullptr);
  char line[1000];
  size_t count = 0;
  while (std::fgets(line, sizeof line, file) != nullptr) count += std::string(line).find(part) != std::string::npos;
  std::fclose(file);
  return count;
}

void the_environment_decides() {
  setenv("PIPERT_NVTX", "0", 1);
  EXPECT(NvtxDomain::wanted() == nullptr);
  setenv("PIPERT_NVTX", "on", 1);
  EXPECT_THROWS(ConfigError, NvtxDomain::wanted(), "PIPERT_NVTX is \"on\"");
  setenv("PIPERT_NVTX", "1", 1);
  if (built_with_nvtx()) {
    EXPECT(NvtxDomain::wanted() == NvtxDomain::get());
  } else {
    EXPECT_THROWS(ConfigError, NvtxDomain::wanted(), "built without NVTX");
  }
  unsetenv("PIPERT_NVTX");
  EXPECT((NvtxDomain::wanted() != nullptr) == (built_with_nvtx() && has_tool()));
}

void an_op_that_nobody_wants_to_see_is_no_event() {
  const NvtxOp op;
  const NvtxRange range(op, 1);
  nvtx_mark(op, 1);
}

void a_text_is_registered_once() {
  const NvtxOp first = NvtxDomain::get()->op("7F7", 7, 7);
  const NvtxOp again = NvtxDomain::get()->op("7F7", 7, 7);
  EXPECT(first.name == again.name);
  EXPECT(first.domain == NvtxDomain::get());
  if (has_tool()) EXPECT(count_in_log("\"event\": \"string\", \"name\": \"7F7\"") == 1);
}

void any_thread_shows_ranges_and_ends_them() {
  NvtxDomain* const domain = NvtxDomain::get();
  std::vector<std::thread> threads;
  for (int32_t thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([=] {
      const NvtxOp outer = domain->op("outer", thread, -1);
      for (int32_t index = 0; index < kRanges; ++index) {
        const NvtxRange range(outer, 0);
        try {
          const NvtxRange inner(domain->op("inner" + std::to_string(index), thread, index), 1);
          throw std::runtime_error("boom");
        } catch (const std::runtime_error&) {
          nvtx_mark(outer, 3'000'000'000);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (!has_tool()) return;
  EXPECT(count_in_log("\"push\"") == 2 * kThreads * kRanges);
  EXPECT(count_in_log("\"pop\"") == 2 * kThreads * kRanges);
  EXPECT(count_in_log("\"mark\"") == kThreads * kRanges);
  EXPECT(count_in_log("3000000000") == kThreads * kRanges);
  EXPECT(count_in_log("\"string\", \"name\": \"inner7\"") == 1);
}

void the_cost_is_measured() {
  EXPECT_THROWS(ConfigError, nvtx_benchmark(-1), "iterations must be positive, got -1");
  if (!built_with_nvtx()) {
    EXPECT_THROWS(ConfigError, nvtx_benchmark(10), "built without NVTX");
  } else if (!has_tool()) {  // which would log every range
    EXPECT(nvtx_benchmark(32'000).on_ns > 0);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) EXPECT(built_with_nvtx() == (std::string(argv[1]) == "1"));
  the_environment_decides();
  an_op_that_nobody_wants_to_see_is_no_event();
  if (built_with_nvtx()) {
    a_text_is_registered_once();
    any_thread_shows_ranges_and_ends_them();
  }
  the_cost_is_measured();
}
