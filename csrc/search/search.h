// The search for a fast order: rules first, then moves of single ops.
//
// 1. Schedules by rules (list_scheduler.h): a grid over how far forwards run ahead and what ranks prefer.
// 2. From the best of them, changes of the rules of single ranks, kept while they make the schedule no worse.
// 3. From the best order, moves of single ops (order_moves.h) by simulated annealing.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "search/order_clock.h"
#include "search/problem.h"

namespace pipert::search {

struct Effort {
  uint64_t seed = 0;
  int64_t rule_trials = 0;   // schedules made by rules
  int64_t order_trials = 0;  // orders made by moves
  double bound = 0;          // no order has a lower figure: stop when it is reached
  bool by_span = true;       // the figure is the longest rank span, else the makespan
};

// Called now and then with the best figure so far, and what share of the effort is spent; false: stop here.
using Watch = std::function<bool(double best, double spent)>;

struct Found {
  Order order;
  double figure = kForever;
};

// Finds an order within the problem's memory limits, no slower than any of `starts` that keeps them. Deterministic,
// unless it is stopped. Requires limits that hold one microbatch.
Found search(const Problem& problem, const std::vector<Order>& starts, const Effort& effort, const Watch& watch);

}  // namespace pipert::search
