#include "device/host/copy.h"

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace pipert {

#if defined(__x86_64__)
namespace {

// Below, the receiver finds the message in a shared cache, which is worth more. Measured with the receiver's reading
// included, on 32 MiB of it: 4 MiB 0.18 ms by memcpy and 0.24 ms past the caches, 16 MiB 1.54 and 1.29 ms.
constexpr size_t kStreamBytes = size_t{8} << 20;

__attribute__((target("avx2"))) void stream(std::byte* to, const std::byte* from, size_t num_bytes) noexcept {
  size_t at = 0;
  for (; at + 64 <= num_bytes; at += 64) {
    const __m256i first = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + at));
    const __m256i second = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + at + 32));
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + at), first);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + at + 32), second);
  }
  _mm_sfence();  // streamed stores are not ordered with the announcement that follows
  std::memcpy(to + at, from + at, num_bytes - at);
}

}  // namespace
#endif

void copy_message(std::byte* to, const void* from, size_t num_bytes) noexcept {
  if (num_bytes == 0) return;
#if defined(__x86_64__)
  if (num_bytes >= kStreamBytes && __builtin_cpu_supports("avx2")) {
    return stream(to, static_cast<const std::byte*>(from), num_bytes);
  }
#endif
  std::memcpy(to, from, num_bytes);
}

}  // namespace pipert
