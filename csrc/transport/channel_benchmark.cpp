#include "transport/channel_benchmark.h"

#include <array>
#include <random>

#include "core/clock.h"
#include "core/error.h"
#include "transport/channels.h"

namespace pipert {
namespace {

constexpr int64_t kTimeoutMs = 10'000;
constexpr int64_t kWarmUp = 20;
constexpr int64_t kSliceNs = 50'000'000;

std::vector<uint64_t> random_words(size_t num_bytes) {
  std::mt19937_64 random(num_bytes);
  std::vector<uint64_t> words(num_bytes / sizeof(uint64_t) + 1);
  for (uint64_t& word : words) word = random();
  return words;
}

}  // namespace

std::vector<double> channel_benchmark(const std::string& session, int32_t rank, size_t num_bytes, int64_t iterations,
                                      int64_t spin_us, const Interrupt& interrupt) {
  Topology topology{.num_ranks = 2,
                    .fingerprint = num_bytes,
                    .edges = {{.source = 0, .destination = 1, .num_slots = 2, .ring_entries = 2},
                              {.source = 1, .destination = 0, .num_slots = 2, .ring_entries = 2}},
                    .edge_of_lane = {},
                    .edge_slot = {}};
  const auto channels = Channels::shm(std::move(topology), rank, session, kTimeoutMs, interrupt);
  SendEnd& out = channels->send_end(rank);
  RecvEnd& in = channels->recv_end(1 - rank);
  const auto await = [&](Counter& event, uint64_t target) {
    if (event.spin(target, spin_us * 1000)) return;
    while (!event.sleep(target, kSliceNs)) {
      if (channels->failure().raised() || channels->left(1 - rank)) throw PeerLost("the other end is gone");
      if (interrupt) interrupt();
    }
  };
  const std::vector<uint64_t> words = random_words(num_bytes);
  const std::array segments{Segment{.data = words.data(), .num_bytes = num_bytes}};
  const std::array<std::byte, 64> header{};
  uint32_t next_slot = 0;
  const auto offer = [&] { in.post(next_slot++ % 2); };
  const auto send = [&] {
    await(out.event(), out.event_target());
    out.send(segments, header);
  };
  const auto receive = [&] {
    await(in.event(), in.event_target());
    in.take();
    offer();
  };

  offer();
  std::vector<double> seconds;
  seconds.reserve(static_cast<size_t>(iterations));
  for (int64_t iteration = -kWarmUp; iteration < iterations; ++iteration) {
    const int64_t begin_ns = now_ns();
    if (rank == 0) send();
    receive();
    if (rank == 1) send();
    if (iteration >= 0) seconds.push_back(static_cast<double>(now_ns() - begin_ns) * 0.5e-9);
  }
  return seconds;
}

}  // namespace pipert
