// The channel protocol, over the heap and over shared memory mapped twice.

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <span>
#include <thread>
#include <vector>

#include "core/error.h"
#include "expect.h"
#include "transport/channel.h"

namespace {

using namespace pipert;

constexpr int64_t kLong = 20'000'000'000;
constexpr Edge kEdge{.source = 0, .destination = 1, .num_slots = 3, .ring_entries = 2};

struct Ends {
  SendEnd send;
  RecvEnd receive;
};

Ends over_heap() {
  const auto memory = EdgeMemory::heap(kEdge);
  return {SendEnd(memory), RecvEnd(memory)};
}

Ends over_shared_memory() {
  const auto memory = EdgeMemory::create(kEdge);
  return {SendEnd(EdgeMemory::open(kEdge, UniqueFd(fcntl(memory->fd(), F_DUPFD_CLOEXEC, 0)))), RecvEnd(memory)};
}

std::vector<std::byte> pattern(size_t num_bytes, uint64_t seed) {
  std::vector<std::byte> bytes(num_bytes);
  for (size_t i = 0; i < num_bytes; ++i) bytes[i] = static_cast<std::byte>((i * 131 + seed * 17) >> 3);
  return bytes;
}

bool same(const std::byte* place, std::span<const std::byte> expected) {
  return std::equal(expected.begin(), expected.end(), place);
}

// Messages of growing and shrinking size, in two segments, from one thread to another.
void stream(Ends ends) {
  const std::vector<size_t> sizes{0, 1, 63, 64, 65, 4096, 4097, 1 << 20, 5, (2 << 20) + 1, 0, (18 << 20) + 3};
  constexpr uint64_t kRounds = 5;
  std::thread sender([&] {
    for (uint64_t k = 0; k < kRounds * sizes.size(); ++k) {
      const std::vector<std::byte> data = pattern(sizes[k % sizes.size()], k);
      const std::vector<std::byte> header = pattern(k % 200, k + 1);
      while (!ends.send.event().sleep(ends.send.event_target(), kLong)) {
      }
      const size_t half = data.size() / 2;
      const Segment segments[] = {{data.data(), half}, {data.data() + half, data.size() - half}};
      ends.send.send(segments, header);
    }
  });
  uint64_t posted = 0;
  for (uint64_t k = 0; k < kRounds * sizes.size(); ++k) {
    while (ends.receive.can_post() && posted < kRounds * sizes.size()) ends.receive.post(posted++ % kEdge.num_slots);
    while (!ends.receive.event().sleep(ends.receive.event_target(), kLong)) {
    }
    const Arrival arrival = ends.receive.take();
    const std::vector<std::byte> data = pattern(sizes[k % sizes.size()], k);
    const std::vector<std::byte> header = pattern(k % 200, k + 1);
    const size_t half = data.size() / 2;
    const size_t second = (half + 63) / 64 * 64;
    EXPECT(arrival.slot == k % kEdge.num_slots);
    EXPECT(arrival.num_bytes == second + data.size() - half);
    EXPECT(arrival.header.size() == header.size());
    EXPECT(same(arrival.header.data(), header));
    const std::byte* place = ends.receive.memory()->slot(arrival.slot);
    EXPECT(same(place, std::span(data).first(half)));
    EXPECT(same(place + second, std::span(data).subspan(half)));
    EXPECT(ends.receive.capacity(arrival.slot) >= arrival.num_bytes);
    EXPECT(arrival.times.start_ns <= arrival.times.end_ns);
  }
  sender.join();
}

void nonsense_from_the_other_side_is_refused() {
  const auto memory = EdgeMemory::heap(kEdge);
  SendEnd send(memory);
  RecvEnd receive(memory);
  receive.post(0);
  memory->entry(0).slot = 99;  // as a broken receiver might
  EXPECT_THROWS(TransportError, send.send({}, {}), "a slot that the plan does not have");
  memory->entry(0).slot = 0;
  const std::byte byte{};
  const Segment huge{&byte, memory->slot_bytes() + 1};
  EXPECT_THROWS(TransportError, send.send({&huge, 1}, {}), "larger than a slot can get");
  send.send({}, {});
  memory->entry(0).num_bytes = ~uint64_t{0};  // as a broken sender might
  EXPECT_THROWS(TransportError, receive.take(), "which no slot can hold");
  memory->entry(0).num_bytes = 0;
  memory->entry(0).header_bytes = 5000;
  EXPECT_THROWS(TransportError, receive.take(), "header of 5000");
}

void memory_of_another_shape_is_refused() {
  const auto memory = EdgeMemory::create(kEdge);
  const auto copy = [&] { return UniqueFd(fcntl(memory->fd(), F_DUPFD_CLOEXEC, 0)); };
  Edge other = kEdge;
  other.num_slots = 4;
  EXPECT_THROWS(TransportError, EdgeMemory::open(other, copy()), "rank 1 passed memory that does not fit");
  EXPECT(ftruncate(memory->fd(), 4096) != 0);  // sealed: nobody can pull the pages away
}

void a_slow_link_holds_messages_back() {
  Ends ends = over_heap();
  ends.receive.delay({.latency_ns = 1'000, .occupancy_ns = kLong});
  ends.receive.post(0);
  ends.receive.post(1);
  const CopyTimes first = ends.send.send({}, {});
  const CopyTimes second = ends.send.send({}, {});
  EXPECT(!ends.receive.arrived());
  EXPECT(ends.receive.due_ns() == first.end_ns + kLong + 1'000);
  EXPECT(ends.receive.take().times.end_ns == first.end_ns + kLong + 1'000);
  EXPECT(second.end_ns < first.end_ns + kLong);
  EXPECT(ends.receive.due_ns() == first.end_ns + 2 * kLong + 1'000);  // the link was taken until then

  ends.receive.take();
  ends.receive.delay({});
  ends.receive.post(2);
  EXPECT(!ends.receive.arrived());
  const CopyTimes third = ends.send.send({}, {});
  EXPECT(ends.receive.arrived());
  EXPECT(ends.receive.take().times.end_ns == third.end_ns);
}

}  // namespace

int main() {
  stream(over_heap());
  stream(over_shared_memory());
  nonsense_from_the_other_side_is_refused();
  memory_of_another_shape_is_refused();
  a_slow_link_holds_messages_back();
}
