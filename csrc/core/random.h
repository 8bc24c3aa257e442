// Random numbers that are the same on every machine (splitmix64, Steele et al., OOPSLA 2014).
#pragma once

#include <cstdint>

namespace pipert {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  // From 0 up to, not including, `bound`.
  int32_t below(int32_t bound) { return static_cast<int32_t>((next() >> 32) * static_cast<uint64_t>(bound) >> 32); }
  // From 0 up to, not including, 1.
  double unit() { return static_cast<double>(next() >> 11) * 0x1p-53; }

 private:
  uint64_t state_;
};

}  // namespace pipert
