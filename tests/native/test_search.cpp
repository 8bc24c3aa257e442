// The search: its clock on orders worked out by hand, and what the rules, the moves and their watcher must keep to.
// (tests/unit holds the clock to the simulator on random orders, and what is found to independent judges.)
#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "expect.h"
#include "search/list_scheduler.h"
#include "search/order_clock.h"
#include "search/order_moves.h"
#include "search/search.h"

namespace {

using namespace pipert;
using namespace pipert::search;

bool near(double value, double expected) { return std::abs(value - expected) < 1e-9; }

// Stage s on rank s; F = 2, I = 3, W = 1, a latency of 0.5; activations of 1, a quarter of it until W.
Problem chain(int32_t num_ranks, int32_t num_microbatches, double memory_limit) {
  Problem problem;
  problem.num_ranks = problem.num_stages = num_ranks;
  problem.num_microbatches = num_microbatches;
  for (int32_t cell = 0; cell < problem.num_cells(); ++cell) problem.rank_of_cell.push_back(cell / num_microbatches);
  for (const double time : {2.0, 3.0, 1.0}) problem.time.insert(problem.time.end(), problem.num_cells(), time);
  problem.latency.assign(static_cast<size_t>(num_ranks) * num_ranks, 0.5);
  problem.occupancy.assign(problem.latency.size(), 0.0);
  problem.act.assign(num_ranks, 1.0);
  problem.act_w.assign(num_ranks, 0.25);
  problem.memory_limit.assign(num_ranks, memory_limit);
  check(problem);
  return problem;
}

int32_t forward(const Problem& problem, int32_t stage, int32_t microbatch) {
  return problem.op(Pass::FORWARD, problem.cell(stage, microbatch));
}

bool keeps_limits(const Problem& problem, const Order& order) {
  for (int32_t rank = 0; rank < problem.num_ranks; ++rank) {
    if (peak_memory(problem, order[rank]) > problem.memory_limit[rank] + 1e-9) return false;
  }
  return true;
}

const Watch kGoOn = [](double, double) { return true; };

void test_one_microbatch_by_hand() {
  const Problem problem = chain(2, 1, 1.0);
  OrderClock clock(problem);
  const Figures& figures = clock.run(one_by_one(problem));
  EXPECT(figures.complete);
  EXPECT(near(clock.end(forward(problem, 0, 0)), 2) && near(clock.start(forward(problem, 1, 0)), 2.5));
  // Rank 1: F to 4.5, I to 7.5, W to 8.5; rank 0: I from 8 to 11, W to 12.
  EXPECT(near(figures.makespan, 12) && near(figures.longest_span, 12) && near(figures.total_span, 12 + 6));
  EXPECT(near(peak_memory(problem, one_by_one(problem)[0]), 1));
}

void test_receives_are_posted_two_deep() {
  const Problem problem = chain(2, 3, kForever);
  const auto op = [&](Pass pass, int32_t microbatch) { return problem.op(pass, problem.cell(1, microbatch)); };
  Order order = one_by_one(problem);
  std::stable_sort(order[0].begin(), order[0].end(),
                   [&](int32_t a, int32_t b) { return problem.pass_of(a) < problem.pass_of(b); });
  OrderClock clock(problem);
  clock.run(order);  // rank 1 runs F0 I0 W0 F1 I1 W1 F2 …; rank 0 has made all by 6
  EXPECT(near(clock.start(op(Pass::FORWARD, 1)), 8.5));
  // The third is sent when the first has been used, at 4.5, but is not made before 6.
  EXPECT(near(clock.start(op(Pass::FORWARD, 2)), 14.5));
  const auto forwards_first = [&](std::vector<int32_t> microbatches) {
    std::stable_partition(order[1].begin(), order[1].end(),
                          [&](int32_t op) { return problem.pass_of(op) == Pass::FORWARD; });
    for (size_t i = 0; i < microbatches.size(); ++i) order[1][i] = op(Pass::FORWARD, microbatches[i]);
  };
  forwards_first({1, 2, 0});
  EXPECT(clock.run(order).complete);
  forwards_first({2, 1, 0});  // it is sent third, when one of the others has been used
  EXPECT(!clock.run(order).complete);
}

void test_rules_keep_the_limit() {
  for (const double limit : {1.0, 1.5, 3.0, kForever}) {
    const Problem problem = chain(4, 9, limit);
    ListScheduler scheduler(problem);
    for (const int32_t ahead : {1, 3, 9}) {
      for (const bool grad_first : {false, true}) {
        const Rules rules{std::vector<int32_t>(4, ahead), std::vector<RankRules>(4, {0.5, grad_first})};
        Order order;
        EXPECT(scheduler.run(rules, order));
        EXPECT(OrderClock(problem).run(order).complete);
        EXPECT(keeps_limits(problem, order));
      }
    }
  }
}

void test_moves_can_be_undone() {
  Order order{{0, 1, 2, 3, 4}};
  apply({0, 1, 3}, order);
  EXPECT((order[0] == std::vector<int32_t>{0, 2, 3, 1, 4}));
  undo({0, 1, 3}, order);
  apply({0, 3, 0}, order);
  EXPECT((order[0] == std::vector<int32_t>{3, 0, 1, 2, 4}));
  undo({0, 3, 0}, order);
  EXPECT((order[0] == std::vector<int32_t>{0, 1, 2, 3, 4}));
}

void test_the_search_finds_what_is_known_to_be_best() {
  // Under a limit of p activations, rank 0 idles (p - 1)(F + I - W + 4 latencies) (arXiv 2401.10241, table 5).
  const Problem problem = chain(4, 12, 4.0);
  const Effort effort{.seed = 1, .rule_trials = 500, .order_trials = 20000};
  const Found found = search::search(problem, {}, effort, kGoOn);
  EXPECT(near(found.figure, 12 * 6 + 3 * (2 + 3 - 1 + 4 * 0.5)));
  EXPECT(near(OrderClock(problem).run(found.order).longest_span, found.figure));
  EXPECT(keeps_limits(problem, found.order));
  EXPECT(search::search(problem, {}, effort, kGoOn).order == found.order);
}

void test_a_start_is_never_lost() {
  const Problem problem = chain(4, 12, 4.0);
  const Effort effort{.rule_trials = 500, .order_trials = 20000};
  const Found found = search::search(problem, {}, effort, kGoOn);
  const Effort none{};
  EXPECT(search::search(problem, {found.order}, none, kGoOn).order == found.order);
  const Problem narrow = chain(4, 12, 2.0);  // the start holds too much
  EXPECT(search::search(narrow, {found.order}, none, kGoOn).order == one_by_one(narrow));
}

void test_the_watcher_stops_it() {
  const Problem problem = chain(8, 64, kForever);
  int calls = 0;
  const Effort endless{.rule_trials = int64_t{1} << 40, .order_trials = int64_t{1} << 40};
  const Found found = search::search(problem, {}, endless, [&](double best, double spent) {
    EXPECT(best < kForever && spent < 1);
    return ++calls < 3;
  });
  EXPECT(calls == 3);
  EXPECT(OrderClock(problem).run(found.order).complete);
}

void test_columns_that_do_not_fit() {
  Problem problem = chain(2, 2, 1.0);
  problem.time.pop_back();
  EXPECT_THROWS(ConfigError, check(problem), "time has 11 entries, expected 12");
  problem = chain(2, 2, 1.0);
  problem.rank_of_cell[3] = 2;
  EXPECT_THROWS(ConfigError, check(problem), "there is no rank 2");
}

}  // namespace

int main() {
  test_one_microbatch_by_hand();
  test_receives_are_posted_two_deep();
  test_rules_keep_the_limit();
  test_moves_can_be_undone();
  test_the_search_finds_what_is_known_to_be_best();
  test_a_start_is_never_lost();
  test_the_watcher_stops_it();
  test_columns_that_do_not_fit();
}
