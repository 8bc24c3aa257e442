// How long a message takes from one process to another, over the same channels that a step uses.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "transport/mesh.h"

namespace pipert {

// To be called by two processes, as ranks 0 and 1 of one session. They send messages of `num_bytes` to and fro; the
// result is, per round trip, half of its seconds: one way. A few round trips before are not counted. Throws
// TransportError, also when the other one is not there within ten seconds.
std::vector<double> channel_benchmark(const std::string& session, int32_t rank, size_t num_bytes, int64_t iterations,
                                      int64_t spin_us, const Interrupt& interrupt = {});

}  // namespace pipert
