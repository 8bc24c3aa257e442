// Memory of the device and of the host. Freeing waits for nobody: work that still uses the memory crashes.

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>

#include "driver.h"

namespace fake_cuda {
namespace {

constexpr int kPoison = 0xFF;  // what new memory holds: NaNs, and nonsense as an index

void* map(size_t bytes, int fd) {
  const int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
  void* const address = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
  return address == MAP_FAILED ? nullptr : address;
}

// -1 when there is no memory for it.
int create_file(size_t bytes) {
  const int fd = memfd_create("fake_cuda", MFD_CLOEXEC);
  if (fd >= 0 && ftruncate(fd, static_cast<off_t>(bytes)) == 0) return fd;
  if (fd >= 0) close(fd);
  return -1;
}

CUresult allocate(Driver& driver, Memory::Kind kind, size_t bytes, uint64_t* base) {
  if (bytes == 0) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = driver.check_unsafe_call()) return error;
  Memory memory{.kind = kind, .bytes = bytes, .device = current_device(), .id = driver.next_memory_id++};
  if (kind == Memory::kDevice) {
    if (bytes > settings().memory_bytes - driver.allocated_bytes) return CUDA_ERROR_OUT_OF_MEMORY;
    memory.fd = create_file(bytes);
    if (memory.fd < 0) return CUDA_ERROR_OUT_OF_MEMORY;
    struct stat status{};
    fstat(memory.fd, &status);
    memory.inode = status.st_ino;
  }
  void* const address = map(bytes, memory.fd);
  if (address == nullptr) {
    if (memory.fd >= 0) close(memory.fd);
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  if (kind == Memory::kDevice) driver.allocated_bytes += bytes;
  std::memset(address, kPoison, bytes);
  *base = memory.base = reinterpret_cast<uint64_t>(address);
  driver.memory.emplace(memory.base, memory);
  return CUDA_SUCCESS;
}

CUresult release(Driver& driver, Memory::Kind kind, uint64_t base) {
  const auto found = driver.memory.find(base);
  if (found == driver.memory.end() || found->second.kind != kind) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = driver.check_unsafe_call()) return error;
  const Memory memory = found->second;
  driver.memory.erase(found);
  munmap(reinterpret_cast<void*>(base), memory.bytes);  // NOLINT(performance-no-int-to-ptr)
  if (kind != Memory::kDevice) return CUDA_SUCCESS;
  close(memory.fd);
  driver.allocated_bytes -= memory.bytes;
  return CUDA_SUCCESS;
}

bool overlaps_registered(Driver& driver, uint64_t base, size_t bytes) {
  const auto after = driver.registered.lower_bound(base + bytes);
  if (after == driver.registered.begin()) return false;
  const auto& [other, size] = *std::prev(after);
  return other + size > base;
}

// One of `Type` at `value`.
template <class Type>
CUresult put(void* value, Type what) {
  std::memcpy(value, &what, sizeof what);
  return CUDA_SUCCESS;
}

CUresult attribute_of(const Memory& memory, int attribute, uint64_t address, void* value) {
  switch (attribute) {
    case CU_POINTER_ATTRIBUTE_CONTEXT:
      return put(value, static_cast<uint64_t>(memory.device) + 1);
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
      return put(value, memory.kind == Memory::kHost ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE);
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
      return put(value, address);
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
      return memory.kind == Memory::kHost ? put(value, address) : CUDA_ERROR_INVALID_VALUE;
    case CU_POINTER_ATTRIBUTE_BUFFER_ID:
      return put(value, memory.id);
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
      return put(value, 0);
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
      return put(value, memory.device);
    case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
      return put(value, memory.kind == Memory::kDevice ? 1 : 0);
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
      return put(value, memory.base);
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
      return put(value, memory.bytes);
    case CU_POINTER_ATTRIBUTE_MAPPED:
      return put(value, 1);
    default:
      return CUDA_ERROR_INVALID_VALUE;
  }
}

}  // namespace

CUresult cuMemAlloc_v2(CUdeviceptr* address, size_t bytes) {
  return call(__func__, Needs::kContext,
              [&](Driver& driver, Lock&) { return allocate(driver, Memory::kDevice, bytes, address); });
}

CUresult cuMemFree_v2(CUdeviceptr address) {
  return call(__func__, Needs::kContext,
              [&](Driver& driver, Lock&) { return release(driver, Memory::kDevice, address); });
}

CUresult cuMemHostAlloc(void** address, size_t bytes, unsigned) {
  return call(__func__, Needs::kContext, [&](Driver& driver, Lock&) -> CUresult {
    uint64_t base = 0;
    if (const CUresult error = allocate(driver, Memory::kHost, bytes, &base)) return error;
    *address = reinterpret_cast<void*>(base);  // NOLINT(performance-no-int-to-ptr)
    return CUDA_SUCCESS;
  });
}

CUresult cuMemFreeHost(void* address) {
  return call(__func__, Needs::kContext, [&](Driver& driver, Lock&) {
    return release(driver, Memory::kHost, reinterpret_cast<uint64_t>(address));
  });
}

CUresult cuMemHostRegister_v2(void* address, size_t bytes, unsigned) {
  return call(__func__, Needs::kContext, [&](Driver& driver, Lock&) -> CUresult {
    const auto base = reinterpret_cast<uint64_t>(address);
    if (base == 0 || bytes == 0) return CUDA_ERROR_INVALID_VALUE;
    if (const CUresult error = driver.check_unsafe_call()) return error;
    if (const Memory* known = driver.find_memory(base)) {
      return known->kind == Memory::kHost ? CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED : CUDA_ERROR_INVALID_VALUE;
    }
    if (overlaps_registered(driver, base, bytes)) return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
    driver.registered.emplace(base, bytes);
    return CUDA_SUCCESS;
  });
}

CUresult cuMemHostUnregister(void* address) {
  return call(__func__, Needs::kContext, [&](Driver& driver, Lock&) -> CUresult {
    if (const CUresult error = driver.check_unsafe_call()) return error;
    const bool known = driver.registered.erase(reinterpret_cast<uint64_t>(address)) == 1;
    return known ? CUDA_SUCCESS : CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
  });
}

CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr* device_address, void* address, unsigned flags) {
  return call(__func__, Needs::kContext, [&](Driver& driver, Lock&) -> CUresult {
    const auto place = reinterpret_cast<uint64_t>(address);
    const Memory* const memory = driver.find_memory(place);
    const bool of_host = memory != nullptr ? memory->kind == Memory::kHost : driver.mapped(place, 1);
    if (flags != 0 || !of_host) return CUDA_ERROR_INVALID_VALUE;
    *device_address = place;
    return CUDA_SUCCESS;
  });
}

CUresult cuMemGetAddressRange_v2(CUdeviceptr* base, size_t* bytes, CUdeviceptr address) {
  return call(__func__, Needs::kContext, [&](Driver& driver, Lock&) -> CUresult {
    const Memory* const memory = driver.find_memory(address);
    if (memory == nullptr) return CUDA_ERROR_INVALID_VALUE;
    if (base != nullptr) *base = memory->base;
    if (bytes != nullptr) *bytes = memory->bytes;
    return CUDA_SUCCESS;
  });
}

CUresult cuPointerGetAttribute(void* value, int attribute, CUdeviceptr address) {
  return call(__func__, Needs::kContext, [&](Driver& driver, Lock&) -> CUresult {
    if (const Memory* memory = driver.find_memory(address)) return attribute_of(*memory, attribute, address, value);
    if (!driver.mapped(address, 1)) return CUDA_ERROR_INVALID_VALUE;
    const auto& [base, bytes] = *std::prev(driver.registered.upper_bound(address));
    return attribute_of({.kind = Memory::kHost, .base = base, .bytes = bytes}, attribute, address, value);
  });
}

}  // namespace fake_cuda
