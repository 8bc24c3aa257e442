#include "transport/device/ipc_edge.h"

#include <unistd.h>

#include <cstring>
#include <utility>

#include "core/error.h"
#include "transport/device/copy_segments.h"

namespace pipert {
namespace {

constexpr size_t kPageBytes = 4096;

size_t table_bytes(uint32_t num_slots) {
  return (num_slots * sizeof(IpcSlot) + kPageBytes - 1) / kPageBytes * kPageBytes;
}

void store(uint32_t& word, uint32_t value) noexcept { std::atomic_ref(word).store(value, std::memory_order_release); }

}  // namespace

IpcSlots::IpcSlots(std::shared_ptr<EdgeMemory> memory, uint32_t num_slots)
    : memory_((memory->populate(0, table_bytes(num_slots)), std::move(memory))),
      num_slots_(num_slots),
      registered_(memory_->slot(0), table_bytes(num_slots)) {}

void IpcSlots::clear() const noexcept { std::memset(memory_->slot(0), 0, table_bytes(num_slots_)); }

void IpcSlots::release() const noexcept {
  for (uint32_t slot = 0; slot < num_slots_; ++slot) {
    store(at(slot).posted, 1);
    store(at(slot).arrived, 1);
  }
}

cuda::Address PeerMappings::base(const cuda::IpcMemHandle& handle) {
  const std::string key(handle.reserved, sizeof handle.reserved);
  const auto found = mapped_.find(key);
  if (found != mapped_.end()) return found->second.address();
  return mapped_.emplace(key, cuda::PeerMemory(handle)).first->second.address();
}

IpcRecvEnd::IpcRecvEnd(std::shared_ptr<IpcSlots> slots, RecvEnd& end, std::shared_ptr<DeviceSlots> memory)
    : slots_((slots->clear(), std::move(slots))),  // before the sender is told anything
      announcements_(end),
      memory_(std::move(memory)) {}

void IpcRecvEnd::prepare(uint32_t slot, size_t num_bytes) {
  if (num_bytes <= memory_->at(slot).capacity) return;
  memory_->ensure(slot, num_bytes);
  const DeviceSlot& place = memory_->at(slot);
  IpcSlot& described = slots_->at(slot);
  cuda::Address base = 0;
  size_t allocated = 0;
  PIPERT_CUDA_TRY(mem_get_address_range(&base, &allocated, place.address));
  if (const cuda::Result result = cuda::driver().ipc_get_mem_handle(&described.base, base); result != cuda::kSuccess) {
    throw TransportError("this device memory cannot be shared with another process: " + cuda::describe(result) +
                         "; if PYTORCH_CUDA_ALLOC_CONF sets expandable_segments, leave that out");
  }
  described.process = getpid();
  described.address = place.address;
  described.offset = place.address - base;
  described.capacity.store(place.capacity, std::memory_order_release);
}

void IpcRecvEnd::receive(uint32_t slot, std::span<const uint64_t>, cuda::StreamView lane, const HostWait&) {
  lane.wait_until_equal(slots_->arrived(slot), 1);
  lane.write(slots_->arrived(slot), 0);
}

IpcSendEnd::IpcSendEnd(std::shared_ptr<IpcSlots> slots, SendEnd& end, std::shared_ptr<PeerMappings> mappings,
                       std::shared_ptr<DeviceRecvEnd> receiver)
    : slots_(std::move(slots)),
      announcements_(end),
      mappings_(std::move(mappings)),
      receiver_(std::move(receiver)),
      places_(slots_->num_slots()) {}

void IpcSendEnd::send(uint32_t slot, const DeviceMessage& message, cuda::StreamView lane, const HostWait& wait) {
  if (!message.known) announcements_.send(message, wait);
  const cuda::Address to = place(slot, packed_bytes(message.segments), wait);
  lane.wait_until_equal(slots_->posted(slot), 1);
  lane.write(slots_->posted(slot), 0);
  copy_segments(to, message.segments, lane);
  lane.write(slots_->arrived(slot), 1);
}

// Where the slot lies, once the receiver, who has been told of the message, has made it large enough.
cuda::Address IpcSendEnd::place(uint32_t slot, size_t num_bytes, const HostWait& wait) {
  if (num_bytes <= places_[slot].capacity) return places_[slot].address;
  if (receiver_) receiver_->prepare(slot, num_bytes);
  const IpcSlot& described = slots_->at(slot);
  if (described.capacity.load(std::memory_order_acquire) < num_bytes) {
    wait([&described, num_bytes](int64_t) {
      if (described.capacity.load(std::memory_order_acquire) >= num_bytes) return true;
      usleep(20);
      return false;
    });
  }
  const cuda::Address base =
      described.process == getpid() ? described.address - described.offset : mappings_->base(described.base);
  places_[slot] = {.address = base + described.offset, .capacity = described.capacity.load(std::memory_order_relaxed)};
  return places_[slot].address;
}

}  // namespace pipert
