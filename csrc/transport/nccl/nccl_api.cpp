#include "transport/nccl/nccl_api.h"

#include <dlfcn.h>

#include <cstdlib>
#include <mutex>

#include "core/error.h"

namespace pipert::nccl {
namespace {

constexpr int kOldest = 21800;
constexpr const char* kLoadedName = "libnccl.so.2";

struct Library {
  void* handle = nullptr;
  std::string path;
};

Library open() {
  const char* named = std::getenv("PIPERT_NCCL");
  if (named != nullptr && *named != '\0') {
    void* const handle = dlopen(named, RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr)
      throw TransportError(std::string("cannot open the NCCL that PIPERT_NCCL names: ") + dlerror());
    return {handle, named};
  }
  void* const handle = dlopen(kLoadedName, RTLD_NOW | RTLD_NOLOAD);
  if (handle != nullptr) return {handle, kLoadedName};
  throw TransportError(
      std::string("no NCCL: ") + kLoadedName +
      " is not loaded in this process (a torch with CUDA loads it when it is imported), and PIPERT_NCCL "
      "does not name a file to open");
}

template <class Function>
void find(const Library& library, const char* name, Function& function) {
  void* const symbol = dlsym(library.handle, name);
  if (symbol == nullptr) {
    throw TransportError(library.path + " is not an NCCL of 2.18 or newer: it has no " + name +
                         " (PIPERT_NCCL names the file to open)");
  }
  function = reinterpret_cast<Function>(symbol);
}

Api load() {
  const Library library = open();
  Api api{.path = library.path};
  find(library, "ncclGetVersion", api.get_version);
  find(library, "ncclGetUniqueId", api.get_unique_id);
  find(library, "ncclCommInitRankConfig", api.comm_init_rank_config);
  find(library, "ncclCommGetAsyncError", api.comm_get_async_error);
  find(library, "ncclCommAbort", api.comm_abort);
  find(library, "ncclCommFinalize", api.comm_finalize);
  find(library, "ncclCommDestroy", api.comm_destroy);
  find(library, "ncclSend", api.send);
  find(library, "ncclRecv", api.recv);
  find(library, "ncclGroupStart", api.group_start);
  find(library, "ncclGroupEnd", api.group_end);
  find(library, "ncclGetErrorString", api.get_error_string);
  find(library, "ncclGetLastError", api.get_last_error);
  if (api.get_version(&api.version) != kSuccess || api.version < kOldest) {
    throw TransportError(library.path + " is NCCL " + version_text(api.version) +
                         ", and pipert needs 2.18 or newer (PIPERT_NCCL names the file to open)");
  }
  return api;
}

}  // namespace

const Api& Api::get() {
  static const Api api = load();  // tried again after it threw
  return api;
}

std::string version_text(int version) {
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

}  // namespace pipert::nccl
