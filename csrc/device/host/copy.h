// Copying messages.
#pragma once

#include <cstddef>

namespace pipert {

// memcpy, but past the caches for messages that do not fit into them: what they held stays, and the destination is not
// read first. When it returns, other threads see the bytes as after memcpy. `to` is aligned to 64 bytes.
void copy_message(std::byte* to, const void* from, size_t num_bytes) noexcept;

}  // namespace pipert
