// The device memory of one edge's receive slots. It belongs to whoever allocates it (torch, CuPy); a slot gets its
// memory when a message first needs it, and a larger piece when a longer message comes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "device/cuda/driver_api.h"

namespace pipert {

struct DeviceSlot {
  cuda::Address address = 0;
  size_t capacity = 0;
};

class DeviceSlots {
 public:
  // Gives `slot` at least `num_bytes` that the device is not using for anything else, and lets go of what it had.
  using Allocate = std::function<cuda::Address(uint32_t slot, size_t num_bytes)>;

  explicit DeviceSlots(uint32_t num_slots) : slots_(num_slots) {}

  uint32_t num_slots() const noexcept { return static_cast<uint32_t>(slots_.size()); }

  void use(Allocate allocate) { allocate_ = std::move(allocate); }
  const DeviceSlot& at(uint32_t slot) const noexcept { return slots_[slot]; }

  void ensure(uint32_t slot, size_t num_bytes) {
    if (num_bytes <= slots_[slot].capacity) return;
    const size_t capacity = (num_bytes + kGranularity - 1) / kGranularity * kGranularity;
    slots_[slot] = {.address = allocate_(slot, capacity), .capacity = capacity};
  }

  static constexpr size_t kGranularity = 512;

 private:
  std::vector<DeviceSlot> slots_;
  Allocate allocate_;
};

}  // namespace pipert
