// What the driver's calls cost the host, and how long the device takes to get from one stream to another.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "device/cuda/graph.h"
#include "device/cuda/stream.h"

namespace pipert::cuda {

// The calls that call_ns() knows.
std::vector<std::string> timed_calls();

// Host nanoseconds of one call, per round: each round makes `calls` of them on an idle device. Throws ConfigError for
// an unknown call, or for more calls in a round than the device's queues take in.
std::vector<double> call_ns(std::string_view call, int64_t calls, int64_t rounds);

// Device nanoseconds of one hop from a stream to another one that waits for it, per round of `hops`, to and fro. `by`:
// "event"; "host word" and "device word", a value that the one writes and the other waits for, in page-locked host
// memory or in the device's.
std::vector<double> hop_ns(std::string_view by, int64_t hops, int64_t rounds);

// Host nanoseconds from writing a word that a stream waits for to seeing the word that the stream writes then.
std::vector<double> round_trip_ns(int64_t rounds);

// A graph in which nothing is done.
Graph empty_graph();

// Enqueues `count` copies of `chunk_bytes`, one after another over `span_bytes` on both sides and from their beginning
// again, the first one at chunk number `first`.
struct Copies {
  Address to = 0;
  Address from = 0;
  size_t span_bytes = 0;
  size_t chunk_bytes = 0;
  int64_t first = 0;
  int64_t count = 0;
};
void enqueue_copies(const Copies& copies, StreamView stream);

}  // namespace pipert::cuda
