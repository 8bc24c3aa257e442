// The memory of one directed edge: a control block that both ends write, and the slots that messages are copied into.
//
//   0                          2 MiB                  2 MiB + slot_bytes
//   | posted | done | ring ... | slot 0 ............. | slot 1 ............. | ...
//
// A slot's addresses are reserved once, far more than a message needs; its pages come when a message first needs
// them. So a slot grows where it stands: no address that somebody looks at ever moves or goes away.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "core/counter.h"
#include "core/unique_fd.h"
#include "device/host/mapping.h"
#include "transport/topology.h"

namespace pipert {

inline constexpr size_t kMaxHeaderBytes = 4096;

// One message on its way. The receiver writes `slot`, then posts; the sender writes the rest, then declares it done.
struct alignas(64) RingEntry {
  uint32_t slot;
  uint32_t header_bytes;
  uint64_t num_bytes;
  int64_t start_ns;  // when the sender began to copy, and when it was done
  int64_t end_ns;
  std::byte header[kMaxHeaderBytes];
};

// The ring follows it.
struct ControlBlock {
  Counter posted;  // by the receiver: this many messages have a place to go
  Counter done;    // by the sender: this many messages have arrived
};

class EdgeMemory {
 public:
  // For two ends in one process.
  static std::shared_ptr<EdgeMemory> heap(const Edge& edge);
  // For two processes: the receiver creates it and passes fd() on; the sender opens it, and throws TransportError when
  // the file is not what the edge needs.
  static std::shared_ptr<EdgeMemory> create(const Edge& edge);
  static std::shared_ptr<EdgeMemory> open(const Edge& edge, UniqueFd fd);

  ControlBlock& control() const noexcept { return *reinterpret_cast<ControlBlock*>(mapping_.data()); }
  RingEntry& entry(uint64_t message) const noexcept {
    return reinterpret_cast<RingEntry*>(mapping_.data() + sizeof(ControlBlock))[message & (ring_entries_ - 1)];
  }
  uint32_t ring_entries() const noexcept { return ring_entries_; }
  uint32_t num_slots() const noexcept { return num_slots_; }
  size_t slot_bytes() const noexcept { return slot_bytes_; }  // the most that a message may have
  std::byte* slot(uint32_t index) const noexcept { return mapping_.data() + slot_offset(index); }
  // Makes the first `bytes` of a slot usable without page faults.
  void populate(uint32_t slot, size_t bytes) const { mapping_.populate(slot_offset(slot), bytes); }
  int fd() const noexcept { return fd_.get(); }

 private:
  EdgeMemory(const Edge& edge, Mapping mapping, UniqueFd fd);
  size_t slot_offset(uint32_t index) const noexcept;

  uint32_t ring_entries_;
  uint32_t num_slots_;
  size_t slot_bytes_;
  Mapping mapping_;
  UniqueFd fd_;
};

}  // namespace pipert
