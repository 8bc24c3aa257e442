#include "settings.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>

namespace fake_nccl {
namespace {

int read(const char* name, int otherwise) {
  const char* text = std::getenv(name);
  if (text == nullptr || *text == '\0') return otherwise;
  char* end = nullptr;
  const long value = std::strtol(text, &end, 10);
  if (*end == '\0') return static_cast<int>(value);
  std::fprintf(stderr, "fake NCCL: %s=%s is not a number\n", name, text);
  std::abort();
}

void read_fault(Settings& settings) {
  const char* text = std::getenv("FAKE_NCCL_FAIL");
  if (text == nullptr || *text == '\0') return;
  static char name[64];
  int code = settings.fail_code;
  if (std::sscanf(text, "%63[^:]:%d:%d", name, &settings.fail_call, &code) < 2) {
    std::fprintf(stderr, "fake NCCL: FAKE_NCCL_FAIL=%s is not name:call or name:call:code\n", text);
    std::abort();
  }
  settings.fail_name = name;
  settings.fail_code = static_cast<Result>(code);
}

Settings read_all() {
  Settings settings;
  settings.version = read("FAKE_NCCL_VERSION", settings.version);
  settings.serial = read("FAKE_NCCL_SERIAL", 0) != 0;
  settings.duplicate = read("FAKE_NCCL_DUPLICATE", 0) != 0;
  settings.num_polls = read("FAKE_NCCL_IN_PROGRESS", settings.num_polls);
  read_fault(settings);
  return settings;
}

}  // namespace

const Settings& settings() {
  static const Settings all = read_all();
  return all;
}

Result next_fault(std::string_view function) noexcept {
  static std::atomic<int> calls{0};
  if (settings().fail_call == 0 || function != settings().fail_name) return pipert::nccl::kSuccess;
  return calls.fetch_add(1, std::memory_order_relaxed) + 1 == settings().fail_call ? settings().fail_code
                                                                                   : pipert::nccl::kSuccess;
}

}  // namespace fake_nccl
