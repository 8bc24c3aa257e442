// Device memory, page-locked host memory, and memory of another process: one move-only owner for each.
#pragma once

#include <cstddef>
#include <utility>

#include "device/cuda/driver.h"

namespace pipert::cuda {

class DeviceBuffer {
 public:
  explicit DeviceBuffer(size_t num_bytes) : num_bytes_(num_bytes) { PIPERT_CUDA_TRY(mem_alloc(&address_, num_bytes)); }
  DeviceBuffer(DeviceBuffer&& other) noexcept
      : address_(std::exchange(other.address_, 0)), num_bytes_(other.num_bytes_) {}
  DeviceBuffer& operator=(DeviceBuffer&&) = delete;
  ~DeviceBuffer() {
    if (address_ != 0) PIPERT_CUDA_REPORT(mem_free(address_));
  }
  Address address() const noexcept { return address_; }
  size_t num_bytes() const noexcept { return num_bytes_; }

 private:
  Address address_ = 0;
  size_t num_bytes_ = 0;
};

// Page-locked host memory, one contiguous piece.
class PinnedBuffer {
 public:
  explicit PinnedBuffer(size_t num_bytes) : num_bytes_(num_bytes) {
    PIPERT_CUDA_TRY(mem_host_alloc(&data_, num_bytes, kHostRegisterPortable));
  }
  PinnedBuffer(PinnedBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), num_bytes_(other.num_bytes_) {}
  PinnedBuffer& operator=(PinnedBuffer&&) = delete;
  ~PinnedBuffer() {
    if (data_ != nullptr) PIPERT_CUDA_REPORT(mem_free_host(data_));
  }
  std::byte* data() const noexcept { return static_cast<std::byte*>(data_); }
  Address address() const noexcept { return reinterpret_cast<Address>(data_); }
  size_t num_bytes() const noexcept { return num_bytes_; }

 private:
  void* data_ = nullptr;
  size_t num_bytes_ = 0;
};

// Host memory that is there already, page-locked and mapped for the device while this lives.
class RegisteredMemory {
 public:
  RegisteredMemory(void* data, size_t num_bytes) : data_(data) {
    PIPERT_CUDA_TRY(mem_host_register(data, num_bytes, kHostRegisterPortable | kHostRegisterDeviceMap));
    if (const Result result = driver().mem_host_get_device_pointer(&address_, data, 0); result != kSuccess) {
      driver().mem_host_unregister(data);
      fail_call("mem_host_get_device_pointer", result);
    }
  }
  RegisteredMemory(const RegisteredMemory&) = delete;
  RegisteredMemory& operator=(const RegisteredMemory&) = delete;
  ~RegisteredMemory() { PIPERT_CUDA_REPORT(mem_host_unregister(data_)); }
  // Of the same byte, for the device.
  Address address_of(const void* byte) const noexcept {
    return address_ + static_cast<Address>(static_cast<const char*>(byte) - static_cast<const char*>(data_));
  }

 private:
  void* data_;
  Address address_ = 0;
};

// An allocation of another process, mapped here.
class PeerMemory {
 public:
  explicit PeerMemory(const IpcMemHandle& handle) {
    PIPERT_CUDA_TRY(ipc_open_mem_handle(&address_, handle, kIpcLazyEnablePeerAccess));
  }
  PeerMemory(PeerMemory&& other) noexcept : address_(std::exchange(other.address_, 0)) {}
  PeerMemory& operator=(PeerMemory&&) = delete;
  ~PeerMemory() {
    if (address_ != 0) PIPERT_CUDA_REPORT(ipc_close_mem_handle(address_));
  }
  Address address() const noexcept { return address_; }

 private:
  Address address_ = 0;
};

// A context that this thread works in: the current one, or else that of the device (which then becomes current).
Context* use_context(int device);

}  // namespace pipert::cuda
