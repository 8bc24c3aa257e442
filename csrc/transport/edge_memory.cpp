#include "transport/edge_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

#include "core/error.h"

namespace pipert {
namespace {

constexpr size_t kAlignment = size_t{2} << 20;      // a huge page
constexpr size_t kMaxSlotBytes = size_t{16} << 30;  // addresses, not memory
constexpr size_t kMaxEdgeBytes = size_t{1} << 40;
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_SEAL;  // nobody can take pages away under the other's feet

size_t round_up(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

size_t control_bytes(uint32_t ring_entries) {
  return round_up(sizeof(ControlBlock) + ring_entries * sizeof(RingEntry));
}

// Both ends compute the same from the plan.
size_t slot_bytes_of(const Edge& edge) {
  return std::min(kMaxSlotBytes, kMaxEdgeBytes / std::max(edge.num_slots, 1U) / kAlignment * kAlignment);
}

size_t total_bytes(const Edge& edge) { return control_bytes(edge.ring_entries) + edge.num_slots * slot_bytes_of(edge); }

[[noreturn]] void fail(const std::string& what) { throw TransportError(what + ": " + std::strerror(errno)); }

}  // namespace

EdgeMemory::EdgeMemory(const Edge& edge, Mapping mapping, UniqueFd fd)
    : ring_entries_(edge.ring_entries),
      num_slots_(edge.num_slots),
      slot_bytes_(slot_bytes_of(edge)),
      mapping_(std::move(mapping)),
      fd_(std::move(fd)) {
  mapping_.populate(0, sizeof(ControlBlock) + ring_entries_ * sizeof(RingEntry));
}

size_t EdgeMemory::slot_offset(uint32_t index) const noexcept {
  return control_bytes(ring_entries_) + index * slot_bytes_;
}

std::shared_ptr<EdgeMemory> EdgeMemory::heap(const Edge& edge) {
  return std::shared_ptr<EdgeMemory>(new EdgeMemory(edge, Mapping::heap(total_bytes(edge)), UniqueFd()));
}

std::shared_ptr<EdgeMemory> EdgeMemory::create(const Edge& edge) {
  UniqueFd fd(memfd_create("pipert", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd) fail("cannot create shared memory");
  if (ftruncate(fd.get(), static_cast<off_t>(total_bytes(edge))) != 0) fail("cannot size shared memory");
  if (fcntl(fd.get(), F_ADD_SEALS, kSeals) != 0) fail("cannot seal shared memory");
  Mapping mapping = Mapping::shared(fd.get(), total_bytes(edge));
  return std::shared_ptr<EdgeMemory>(new EdgeMemory(edge, std::move(mapping), std::move(fd)));
}

std::shared_ptr<EdgeMemory> EdgeMemory::open(const Edge& edge, UniqueFd fd) {
  struct stat status{};
  if (fstat(fd.get(), &status) != 0) fail("cannot look at the shared memory of a peer");
  if (static_cast<size_t>(status.st_size) != total_bytes(edge) || fcntl(fd.get(), F_GET_SEALS) != kSeals) {
    throw TransportError("rank " + std::to_string(edge.destination) + " passed memory that does not fit the edge");
  }
  Mapping mapping = Mapping::shared(fd.get(), total_bytes(edge));
  return std::shared_ptr<EdgeMemory>(new EdgeMemory(edge, std::move(mapping), std::move(fd)));
}

}  // namespace pipert
