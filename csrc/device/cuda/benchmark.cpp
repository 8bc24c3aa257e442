#include "device/cuda/benchmark.h"

#include <array>
#include <atomic>
#include <functional>
#include <utility>

#include "core/clock.h"
#include "core/error.h"
#include "device/cuda/graph.h"
#include "device/cuda/memory.h"
#include "device/cuda/timer.h"

namespace pipert::cuda {
namespace {

constexpr int64_t kMostEnqueued = 400;  // on a stream that is held, without the host ever being kept waiting
constexpr int64_t kRoundTripLimitNs = 10'000'000'000;
constexpr int64_t kSettleNs = 20'000;

void check_counts(int64_t calls, int64_t rounds) {
  if (calls < 1 || calls > kMostEnqueued) {
    throw ConfigError("a round has 1 to " + std::to_string(kMostEnqueued) + " calls, not " + std::to_string(calls));
  }
  if (rounds < 1) throw ConfigError("there must be a round at least, not " + std::to_string(rounds));
}

// Words that streams write and wait for.
class Words {
 public:
  enum class Place { kHost, kDevice };
  explicit Words(Place place) : place_(place) {
    Stream stream(0);
    PIPERT_CUDA_TRY(memset_d8_async(at(0), 0, kBytes, stream.view().get()));
    PIPERT_CUDA_TRY(stream_synchronize(stream.view().get()));
  }
  Address at(size_t index) const noexcept {
    return (place_ == Place::kHost ? host_.address() : device_.address()) + index * kApart;
  }
  std::atomic_ref<uint32_t> on_host(size_t index) const noexcept {
    return std::atomic_ref(*reinterpret_cast<uint32_t*>(host_.data() + index * kApart));
  }

 private:
  static constexpr size_t kApart = 128;
  static constexpr size_t kBytes = 2 * kApart;

  Place place_;
  PinnedBuffer host_{kBytes};
  DeviceBuffer device_{kBytes};
};

Graph captured(const std::function<void(StreamView)>& work) {
  constexpr int kThreadLocal = 1;
  const Stream stream(0);
  PIPERT_CUDA_TRY(stream_begin_capture(stream.view().get(), kThreadLocal));
  work(stream.view());
  GraphHandle* graph = nullptr;
  PIPERT_CUDA_TRY(stream_end_capture(stream.view().get(), &graph));
  return Graph(graph);
}

// Everything that a call may need.
struct Bench {
  Stream stream{0};
  Stream held{0};
  Gate gate;
  Event plain{Timing::kOff};
  Event timing{Timing::kOn};
  Event happened{Timing::kOff};
  Event pending{Timing::kOff};
  Words host{Words::Place::kHost};
  Words device{Words::Place::kDevice};
  DeviceBuffer memory{512};
  GraphExec empty{empty_graph().get()};
  GraphExec memset{
      captured([this](StreamView s) { PIPERT_CUDA_TRY(memset_d8_async(memory.address(), 1, 4, s.get())); }).get()};

  Bench() {
    held.view().record(happened.view());
    happened.view().synchronize();
  }
};

struct Call {
  std::string_view name;
  void (*make)(Bench& bench, StreamView stream);
  bool pending = false;  // waits for what is held until the round's end
};

constexpr std::array kCalls{
    Call{"event record", [](Bench& b, StreamView s) { s.record(b.plain.view()); }},
    Call{"event record, with timing", [](Bench& b, StreamView s) { s.record(b.timing.view()); }},
    Call{"stream wait event, happened", [](Bench& b, StreamView s) { s.wait(b.happened.view()); }},
    Call{"stream wait event, pending", [](Bench& b, StreamView s) { s.wait(b.pending.view()); }, true},
    Call{"stream write value, host word", [](Bench& b, StreamView s) { s.write(b.host.at(0), 1); }},
    Call{"stream write value, device word", [](Bench& b, StreamView s) { s.write(b.device.at(0), 1); }},
    Call{"stream wait value, host word", [](Bench& b, StreamView s) { s.wait_until_equal(b.host.at(1), 0); }},
    Call{"stream wait value, device word", [](Bench& b, StreamView s) { s.wait_until_equal(b.device.at(1), 0); }},
    Call{"memcpy async, 4 B", [](Bench& b, StreamView s) { s.copy(b.memory.address(), b.memory.address() + 256, 4); }},
    Call{"graph launch, empty", [](Bench& b, StreamView s) { b.empty.launch(s); }},
    Call{"graph launch, one memset", [](Bench& b, StreamView s) { b.memset.launch(s); }},
};

const Call& find_call(std::string_view name) {
  for (const Call& call : kCalls) {
    if (call.name == name) return call;
  }
  throw ConfigError("there is no call '" + std::string(name) + "' to be timed");
}

// Until the device has come to what was enqueued.
void settle() {
  const int64_t begin_ns = now_ns();
  while (now_ns() - begin_ns < kSettleNs) {
  }
}

// One hop of a chain between two streams.
using Hop = std::function<void(StreamView from, StreamView to, size_t number)>;

std::vector<double> chain_ns(const Hop& hop, int64_t hops, int64_t rounds) {
  const Stream here(0);
  const Stream there(0);
  const std::array streams{here.view(), there.view()};
  Timer timer;
  std::vector<double> times;
  for (int64_t round = -1; round < rounds; ++round) {  // the first one warms up
    timer.start(std::span(streams).first(1), true);
    for (int64_t number = 0; number < hops; ++number) {
      hop(streams[number % 2], streams[(number + 1) % 2], static_cast<size_t>(number));
    }
    timer.stop(std::span(streams).subspan(hops % 2, 1));
    timer.release();
    if (const auto ns = static_cast<double>(timer.ns()); round >= 0) times.push_back(ns / static_cast<double>(hops));
  }
  return times;
}

std::vector<double> event_hop_ns(int64_t hops, int64_t rounds) {
  std::vector<Event> events;
  for (int64_t number = 0; number < hops; ++number) events.emplace_back(Timing::kOff);
  return chain_ns(
      [&](StreamView from, StreamView to, size_t number) {
        from.record(events[number].view());
        to.wait(events[number].view());
      },
      hops, rounds);
}

std::vector<double> word_hop_ns(Words::Place place, int64_t hops, int64_t rounds) {
  const Words words(place);
  uint32_t value = 0;
  return chain_ns(
      [&](StreamView from, StreamView to, size_t number) {
        from.write(words.at(number % 2), ++value);
        to.wait_until_equal(words.at(number % 2), value);
      },
      hops, rounds);
}

}  // namespace

Graph empty_graph() {
  use_context(0);
  return captured([](StreamView) {});
}

std::vector<std::string> timed_calls() {
  std::vector<std::string> names;
  for (const Call& call : kCalls) names.emplace_back(call.name);
  return names;
}

std::vector<double> call_ns(std::string_view name, int64_t calls, int64_t rounds) {
  const Call& call = find_call(name);
  check_counts(calls, rounds);
  use_context(0);
  Bench bench;
  const StreamView stream = bench.stream.view();
  std::vector<double> times;
  for (int64_t round = -1; round < rounds; ++round) {  // the first one warms up
    if (call.pending) {
      bench.gate.hold(bench.held.view());
      bench.held.view().record(bench.pending.view());
    }
    const int64_t begin_ns = now_ns();
    for (int64_t number = 0; number < calls; ++number) call.make(bench, stream);
    const int64_t took_ns = now_ns() - begin_ns;
    bench.gate.open();
    PIPERT_CUDA_TRY(stream_synchronize(stream.get()));
    if (round >= 0) times.push_back(static_cast<double>(took_ns) / static_cast<double>(calls));
  }
  return times;
}

std::vector<double> hop_ns(std::string_view by, int64_t hops, int64_t rounds) {
  check_counts(hops, rounds);
  use_context(0);
  if (by == "event") return event_hop_ns(hops, rounds);
  if (by == "host word") return word_hop_ns(Words::Place::kHost, hops, rounds);
  if (by == "device word") return word_hop_ns(Words::Place::kDevice, hops, rounds);
  throw ConfigError("streams wait by an event, a host word or a device word, not by '" + std::string(by) + "'");
}

std::vector<double> round_trip_ns(int64_t rounds) {
  check_counts(1, rounds);
  use_context(0);
  const Words words(Words::Place::kHost);
  const Stream stream(0);
  const std::atomic_ref<uint32_t> asked = words.on_host(0);
  const std::atomic_ref<uint32_t> answered = words.on_host(1);
  std::vector<double> times;
  for (int64_t round = -1; round < rounds; ++round) {  // the first one warms up
    const auto turn = static_cast<uint32_t>(round + 2);
    stream.view().wait_until_equal(words.at(0), turn);
    stream.view().write(words.at(1), turn);
    settle();
    const int64_t begin_ns = now_ns();
    asked.store(turn, std::memory_order_release);
    while (answered.load(std::memory_order_acquire) != turn) {
      if (now_ns() - begin_ns > kRoundTripLimitNs) throw CudaError("the device does not answer a word of the host");
    }
    if (round >= 0) times.push_back(static_cast<double>(now_ns() - begin_ns));
  }
  return times;
}

void enqueue_copies(const Copies& copies, StreamView stream) {
  if (copies.chunk_bytes == 0 || copies.chunk_bytes > copies.span_bytes) {
    throw ConfigError("chunks of " + std::to_string(copies.chunk_bytes) + " bytes do not fit into " +
                      std::to_string(copies.span_bytes));
  }
  const auto chunks = static_cast<int64_t>(copies.span_bytes / copies.chunk_bytes);
  for (int64_t number = copies.first; number < copies.first + copies.count; ++number) {
    const size_t offset = static_cast<size_t>(number % chunks) * copies.chunk_bytes;
    stream.copy(copies.to + offset, copies.from + offset, copies.chunk_bytes);
  }
}

}  // namespace pipert::cuda
