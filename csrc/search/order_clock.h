// How long a given order takes: the plan's clock (sim/clock.h) without a plan.
//
// Each rank runs its ops in order, each as soon as its inputs are there. A transfer starts when its maker has ended,
// the one before it on its edge has left, and the receiver has used all but one of those before (receives are posted
// two deep, as pipert.compile does by default). The one wait of a lowered plan that is not seen here is that for a
// slot's reuse, so the plan can be slower, never faster.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "search/problem.h"

namespace pipert::search {

struct Figures {
  bool complete = false;     // false: the order gets stuck, and nothing else is set
  double makespan = 0;       // end of the last op, from 0
  double longest_span = 0;   // over the ranks, the longest time from the start of the first op to the end of the last
  double total_span = 0;     // over the ranks, the sum of the same
  int32_t longest_rank = 0;  // whose span is the longest
  int32_t last_rank = 0;     // that ends last
};

class OrderClock {
 public:
  explicit OrderClock(const Problem& problem);

  // Runs an order in which every rank has its own ops, each once. The times stay until the next run.
  const Figures& run(const Order& order);
  const Figures& figures() const { return figures_; }

  double start(int32_t op) const { return end_[op] - problem_.time[op]; }
  double end(int32_t op) const { return end_[op]; }
  // In its rank's order.
  int32_t place(int32_t op) const { return place_[op]; }
  // The time of the rank's first start.
  double rank_start(int32_t rank) const { return rank_start_[rank]; }
  double rank_end(int32_t rank) const { return rank_end_[rank]; }

 private:
  struct Node {
    int32_t rank;
    int32_t source = kNone;       // its input comes from this op
    int32_t edge = kNone;         // over this edge; kNone: it is made on the same rank
    int32_t needs = kNone;        // an op of its own cell that comes before
    int32_t reader_edge = kNone;  // what it makes leaves over this edge
    int32_t reader = kNone;
  };
  struct Edge {
    int32_t destination;
    double latency, occupancy;
    std::vector<int32_t> transfers;  // their readers, in the order in which they are made
    size_t num_started = 0;
    double free_at = 0;
    int32_t last_read = kNone, second_last_read = kNone;  // places of the readers so far in the destination's order
  };

  bool run_rank(int32_t rank, const std::vector<int32_t>& ops, const Order& order);
  bool arrive(int32_t op, const Order& order);

  const Problem& problem_;
  std::vector<Node> nodes_;  // per op
  std::vector<Edge> edges_;
  std::vector<double> end_;      // per op; negative: not run yet
  std::vector<double> arrival_;  // per op, of its input over an edge; negative: not yet
  std::vector<int32_t> place_;   // per op, in its rank's order
  std::vector<int32_t> cursor_;  // per rank
  std::vector<double> rank_start_, rank_end_;
  Figures figures_;
};

// The most that a rank holds when it runs its ops in this order.
double peak_memory(const Problem& problem, const std::vector<int32_t>& ops);

}  // namespace pipert::search
