#include "driver.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>

namespace fake_nccl {
namespace {

template <class Function>
void find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
}

Driver open() {
  const char* named = std::getenv("PIPERT_LIBCUDA");
  void* const library = dlopen(named != nullptr ? named : "libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  Driver driver;
  if (library != nullptr) {
    find(library, "cuLaunchHostFunc", driver.launch_host_function);
    find(library, "cuStreamIsCapturing", driver.stream_is_capturing);
    find(library, "cuCtxGetDevice", driver.context_get_device);
    return driver;
  }
  std::fprintf(stderr, "fake NCCL: no CUDA driver: %s\n", dlerror());
  std::abort();
}

}  // namespace

const Driver& Driver::get() {
  static const Driver driver = open();
  return driver;
}

}  // namespace fake_nccl
