// Sleeping on a 32-bit word, in private or in shared memory.
#pragma once

#include <atomic>
#include <cstdint>

namespace pipert::futex {

// Sleeps while `word` holds `expected`, for at most `timeout_ns`. Also returns on a wake-up, on a signal, or for no
// reason: callers look at their condition again.
void wait(const std::atomic<uint32_t>& word, uint32_t expected, int64_t timeout_ns) noexcept;

void wake_all(std::atomic<uint32_t>& word) noexcept;

}  // namespace pipert::futex
