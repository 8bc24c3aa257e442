// The owner of a range of mapped memory: its addresses are reserved at once, its pages come when they are used.
#pragma once

#include <cstddef>
#include <utility>

namespace pipert {

class Mapping {
 public:
  Mapping() = default;
  // Memory of this process. Throws TransportError when the addresses cannot be reserved.
  static Mapping heap(size_t bytes);
  // The file's first `bytes`, shared with everybody who maps it.
  static Mapping shared(int fd, size_t bytes);
  Mapping(Mapping&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Mapping& operator=(Mapping&& other) noexcept;
  ~Mapping();

  std::byte* data() const noexcept { return data_; }
  size_t size() const noexcept { return bytes_; }

  // Brings the pages of [offset, offset + bytes) in, so that using them takes no page fault. What they hold stays.
  // Throws TransportError when there is no memory for them.
  void populate(size_t offset, size_t bytes) const;

 private:
  Mapping(int flags, int fd, size_t bytes);

  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace pipert
