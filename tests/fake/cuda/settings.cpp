#include "settings.h"

#include <cstdio>
#include <cstdlib>

namespace fake_cuda {
namespace {

template <class Number>
void read(const char* name, Number& value) {
  const char* text = std::getenv(name);
  if (text == nullptr || *text == '\0') return;
  char* end = nullptr;
  value = static_cast<Number>(std::strtoull(text, &end, 10));
  if (*end == '\0') return;
  std::fprintf(stderr, "fake CUDA driver: %s=%s is not a number\n", name, text);
  std::abort();
}

void read_fault(Settings& settings) {
  const char* text = std::getenv("FAKE_CUDA_FAIL");
  if (text == nullptr || *text == '\0') return;
  char name[64] = "";
  unsigned long long call = 0;
  if (std::sscanf(text, "%63[^:]:%llu:%d", name, &call, &settings.fail_code) < 2) {
    std::fprintf(stderr, "fake CUDA driver: FAKE_CUDA_FAIL=%s is not name:call or name:call:code\n", text);
    std::abort();
  }
  settings.fail_name = name;
  settings.fail_call = call;
}

Settings* read_all() {
  auto* settings = new Settings;
  read("FAKE_CUDA_DEVICES", settings->num_devices);
  read("FAKE_CUDA_VERSION", settings->version);
  read("FAKE_CUDA_MEMORY_BYTES", settings->memory_bytes);
  read("FAKE_CUDA_JITTER_US", settings->jitter_us);
  read("FAKE_CUDA_SEED", settings->seed);
  read("FAKE_CUDA_MAX_CONNECTIONS", settings->max_connections);
  read_fault(*settings);
  return settings;
}

// Whether the setting, with or without the version that exported names end with, means the function.
bool means(const std::string& setting, std::string_view function) noexcept {
  return function == setting || (function.starts_with(setting) && function.substr(setting.size()) == "_v2");
}

}  // namespace

const Settings& settings() {
  static const Settings* const all = read_all();  // never destroyed: threads outlive main()
  return *all;
}

CUresult next_fault(std::string_view function) noexcept {
  static std::atomic<uint64_t> calls{0};
  if (settings().fail_call == 0 || !means(settings().fail_name, function)) return CUDA_SUCCESS;
  return calls.fetch_add(1, std::memory_order_relaxed) + 1 == settings().fail_call ? settings().fail_code
                                                                                   : CUDA_SUCCESS;
}

}  // namespace fake_cuda
