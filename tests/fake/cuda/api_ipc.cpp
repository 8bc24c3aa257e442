// Device memory in several processes: the exporter's file, opened through /proc. Nothing is left behind by a process
// that is killed.

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <string>

#include "driver.h"

namespace fake_cuda {
namespace {

constexpr uint64_t kMagic = 0x66616B6563756461;

struct Handle {
  uint64_t magic = kMagic;
  int32_t process = 0;
  int32_t fd = -1;
  uint64_t inode = 0;
  uint64_t bytes = 0;
  int32_t device = 0;
  char unused[28] = {};
};
static_assert(sizeof(Handle) == sizeof(CUipcMemHandle));

// -1 when the exporter, or its memory, is gone.
int open_file(const Handle& handle) {
  const std::string path = "/proc/" + std::to_string(handle.process) + "/fd/" + std::to_string(handle.fd);
  const int fd = open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) return -1;
  struct stat status{};
  if (fstat(fd, &status) == 0 && status.st_ino == handle.inode) return fd;
  close(fd);
  return -1;
}

CUresult import(Driver& driver, const Handle& handle, uint64_t* base) {
  const int fd = open_file(handle);
  if (fd < 0) return CUDA_ERROR_INVALID_HANDLE;
  void* const address = mmap(nullptr, handle.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  if (address == MAP_FAILED) return CUDA_ERROR_MAP_FAILED;
  *base = reinterpret_cast<uint64_t>(address);
  driver.memory.emplace(*base, Memory{.kind = Memory::kImported,
                                      .base = *base,
                                      .bytes = handle.bytes,
                                      .device = handle.device,
                                      .inode = handle.inode,
                                      .id = driver.next_memory_id++,
                                      .num_opens = 1});
  return CUDA_SUCCESS;
}

}  // namespace

CUresult cuIpcGetMemHandle(CUipcMemHandle* result, CUdeviceptr address) {
  return call(__func__, Needs::kContext, [&](Driver& driver, Lock&) -> CUresult {
    const Memory* const memory = driver.find_memory(address);
    if (memory == nullptr || memory->kind != Memory::kDevice) return CUDA_ERROR_INVALID_VALUE;
    const Handle handle{.process = getpid(),
                        .fd = memory->fd,
                        .inode = memory->inode,
                        .bytes = memory->bytes,
                        .device = memory->device};
    *result = std::bit_cast<CUipcMemHandle>(handle);
    return CUDA_SUCCESS;
  });
}

CUresult cuIpcOpenMemHandle_v2(CUdeviceptr* address, CUipcMemHandle given, unsigned flags) {
  return call(__func__, Needs::kContext, [&](Driver& driver, Lock&) -> CUresult {
    const auto handle = std::bit_cast<Handle>(given);
    if (handle.magic != kMagic || flags != CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS) return CUDA_ERROR_INVALID_VALUE;
    if (handle.process == getpid()) return CUDA_ERROR_INVALID_CONTEXT;
    if (const CUresult error = driver.check_unsafe_call()) return error;
    const auto opened = std::find_if(driver.memory.begin(), driver.memory.end(), [&](const auto& entry) {
      return entry.second.kind == Memory::kImported && entry.second.inode == handle.inode;
    });
    if (opened == driver.memory.end()) return import(driver, handle, address);
    ++opened->second.num_opens;
    *address = opened->first;
    return CUDA_SUCCESS;
  });
}

CUresult cuIpcCloseMemHandle(CUdeviceptr address) {
  return call(__func__, Needs::kContext, [&](Driver& driver, Lock&) -> CUresult {
    const auto found = driver.memory.find(address);
    if (found == driver.memory.end() || found->second.kind != Memory::kImported) return CUDA_ERROR_INVALID_VALUE;
    if (const CUresult error = driver.check_unsafe_call()) return error;
    if (--found->second.num_opens > 0) return CUDA_SUCCESS;
    munmap(reinterpret_cast<void*>(address), found->second.bytes);  // NOLINT(performance-no-int-to-ptr)
    driver.memory.erase(found);
    return CUDA_SUCCESS;
  });
}

}  // namespace fake_cuda
