#include "device/cuda/driver.h"

#include <dlfcn.h>

#include <cstdlib>

#include "core/log.h"
#include "device/cuda/timed_driver.h"

namespace pipert::cuda {
namespace {

// What a first look at the driver came to.
struct Loaded {
  DriverApi api;
  std::string problem;  // empty: the driver works
};

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

std::string name_of_library() {
  const char* path = std::getenv("PIPERT_LIBCUDA");
  return path != nullptr && *path != '\0' ? path : "libcuda.so.1";
}

template <typename Function>
bool find(void* library, const char* symbol, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, symbol));
  return function != nullptr;
}

Loaded load() {
  Loaded loaded;
  const std::string name = name_of_library();
  void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);  // stays open: the pointers live as long as the process
  if (library == nullptr) {
    loaded.problem = "no CUDA driver: " + name + " cannot be opened (" + dlerror() + ")";
    return loaded;
  }
  const char* missing = nullptr;
#define PIPERT_CUDA_FIND(name, symbol, arguments) \
  if (!find(library, symbol, loaded.api.name)) missing = symbol;
  PIPERT_CUDA_FUNCTIONS(PIPERT_CUDA_FIND)
#undef PIPERT_CUDA_FIND
  int version = 0;
  if (loaded.api.driver_get_version != nullptr) loaded.api.driver_get_version(&version);
  if (missing != nullptr || version < kOldestDriver) {
    loaded.problem = "the CUDA driver is too old: it is for CUDA " + version_text(version) + ", pipert needs " +
                     version_text(kOldestDriver) + " or newer" +
                     (missing == nullptr ? "" : std::string(" (it lacks ") + missing + ")");
    return loaded;
  }
  const Result result = loaded.api.init(0);
  int count = 0;
  if (result == kSuccess) loaded.api.device_get_count(&count);
  if (result == kNoDevice || (result == kSuccess && count == 0)) {
    loaded.problem = "the CUDA driver finds no device (CUDA_VISIBLE_DEVICES may hide it)";
  } else if (result != kSuccess) {
    const char* text = nullptr;
    loaded.api.get_error_name(result, &text);
    loaded.problem = std::string("the CUDA driver does not start: cuInit returned ") + (text == nullptr ? "?" : text);
  }
  return loaded;
}

struct Opened {
  Loaded loaded = load();
  DriverApi called = timed_if_asked(loaded.api);
};

const Opened& opened() {
  static const Opened once;
  return once;
}

const Loaded& loaded() { return opened().loaded; }

}  // namespace

const DriverApi& driver() {
  const Opened& found = opened();
  if (!found.loaded.problem.empty()) [[unlikely]]
    throw CudaError(found.loaded.problem);
  return found.called;
}

bool driver_works() noexcept { return loaded().problem.empty(); }

std::string describe(Result result) {
  const char* name = nullptr;
  const char* text = nullptr;
  loaded().api.get_error_name(result, &name);
  loaded().api.get_error_string(result, &text);
  return std::string(name == nullptr ? "an unknown CUDA error" : name) + " (" +
         (text == nullptr ? std::to_string(result) : text) + ")";
}

void fail_call(const char* call, Result result) {
  throw CudaError("the CUDA driver refused " + std::string(call) + ": " + describe(result));
}

void report_call(const char* call, Result result) noexcept {
  log_warning("the CUDA driver refused " + std::string(call) + ": " + describe(result));
}

}  // namespace pipert::cuda
