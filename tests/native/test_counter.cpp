// Counter: no wake-up is lost, and what was written before an advance is seen after it.

#include <thread>
#include <vector>

#include "core/clock.h"
#include "core/counter.h"
#include "expect.h"

namespace {

using pipert::Counter;

constexpr int64_t kLong = 20'000'000'000;  // a lost wake-up would show as a sleep this long

// Two threads take turns, each sleeping until the other has moved on: every advance has a sleeper.
void take_turns(int rounds, int64_t spin_ns) {
  Counter ping, pong;
  int value = 0;  // not atomic: guarded by the turns
  const int64_t begin = pipert::now_ns();
  std::thread other([&] {
    for (int round = 0; round < rounds; ++round) {
      if (!ping.spin(round + 1, spin_ns)) EXPECT(ping.sleep(round + 1, kLong));
      ++value;
      pong.advance();
    }
  });
  for (int round = 0; round < rounds; ++round) {
    ++value;
    ping.advance();
    if (!pong.spin(round + 1, spin_ns)) EXPECT(pong.sleep(round + 1, kLong));
    EXPECT(value == 2 * (round + 1));
  }
  other.join();
  EXPECT(pipert::now_ns() - begin < kLong);
}

// Many wait for one, for different values.
void many_sleepers() {
  Counter counter;
  std::vector<std::thread> threads;
  for (uint64_t target = 1; target <= 4; ++target) {
    threads.emplace_back([&counter, target] {
      while (!counter.sleep(250 * target, kLong)) {  // also wakes for smaller values
      }
    });
  }
  for (int i = 0; i < 1000; ++i) counter.advance();
  for (std::thread& thread : threads) thread.join();
  EXPECT(counter.value() == 1000);
}

void ends_in_time() {
  Counter counter;
  const int64_t begin = pipert::now_ns();
  EXPECT(!counter.sleep(1, 2'000'000));
  EXPECT(!counter.spin(1, 1'000));
  EXPECT(!counter.spin(1, 0));
  EXPECT(pipert::now_ns() - begin >= 1'000'000);
  counter.advance();
  EXPECT(counter.sleep(1, kLong));
  EXPECT(counter.spin(1, 0));
}

}  // namespace

int main() {
  take_turns(20'000, 0);
  take_turns(5'000, 20'000);
  many_sleepers();
  ends_in_time();
}
