#include "device/host/mapping.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <string>

#include "core/error.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace pipert {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

size_t page_bytes() noexcept {
  static const auto bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

}  // namespace

Mapping::Mapping(int flags, int fd, size_t bytes) : bytes_(bytes) {
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags | MAP_NORESERVE, fd, 0);
  if (data == MAP_FAILED) {
    throw TransportError("cannot reserve " + std::to_string(bytes >> 20) + " MiB of addresses for received tensors: " +
                         std::strerror(errno) + " (is the address space limited, as by ulimit -v?)");
  }
  data_ = static_cast<std::byte*>(data);
  madvise(data, bytes, MADV_DONTDUMP);  // a core file of the whole range would be enormous
}

Mapping Mapping::heap(size_t bytes) { return Mapping(MAP_PRIVATE | MAP_ANONYMOUS, -1, bytes); }

Mapping Mapping::shared(int fd, size_t bytes) { return Mapping(MAP_SHARED, fd, bytes); }

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

Mapping::~Mapping() {
  if (data_ != nullptr) munmap(data_, bytes_);
}

void Mapping::populate(size_t offset, size_t bytes) const {
  if (bytes == 0) return;
  const size_t first = offset / page_bytes() * page_bytes();
  const size_t last = std::min(bytes_, offset + bytes);
  std::byte* start = data_ + first;
  if (last - first >= kHugePage) madvise(start, last - first, MADV_HUGEPAGE);  // fewer TLB misses; a wish only
  int result = 0;
  do {
    result = madvise(start, last - first, MADV_POPULATE_WRITE);
  } while (result != 0 && (errno == EINTR || errno == EAGAIN));
  if (result == 0) return;
  if (errno == EINVAL) {  // a kernel before 5.14: read every page, which brings it in as well
    for (size_t at = first; at < last; at += page_bytes()) {
      static_cast<void>(*static_cast<const volatile std::byte*>(data_ + at));
    }
    return;
  }
  throw TransportError("no memory for a message of " + std::to_string(bytes) + " bytes: " + std::strerror(errno));
}

}  // namespace pipert
