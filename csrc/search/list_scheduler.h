// A schedule by rules: time moves on, and a rank that is free takes the op that its rules prefer.
//
// The rules follow the automatic scheduler of Qi et al., "Zero Bubble Pipeline Parallelism" (arXiv 2401.10241, section
// 3.1): forwards run ahead as far as memory and a limit allow, then forwards and input gradients take turns, weight
// gradients fill the gaps and give memory back when it is short. Here the limits and choices are parameters, one set
// for each rank, and so the rules hold for any placement and any times; the search tries values for them.
//
// No schedule gets stuck for want of memory: a forward starts only if the oldest microbatch that still has forwards to
// run on the rank keeps room for all of them, so that the microbatches can always be finished one after another.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

#include "search/problem.h"

namespace pipert::search {

// What one rank prefers.
struct RankRules {
  double overrun = 0;              // a weight gradient may delay what is about to arrive by this share of its time
  bool grad_first = false;         // of a ready forward and a ready input gradient, the latter
  bool recycle_first = false;      // where a forward lacks memory: a weight gradient before an input gradient
  bool late_forward_first = true;  // of ready forwards, that of the later stage
  bool late_grad_first = true;     // of ready input gradients, that of the later stage
  bool operator==(const RankRules&) const = default;
};

struct Rules {
  std::vector<int32_t> ahead;    // per queue: the most forwards whose input gradient has not run
  std::vector<RankRules> ranks;  // per rank
  bool operator==(const Rules&) const = default;
};

// The work of one stage on one rank: its microbatches, ascending. Each pass runs through them in this order.
struct Queue {
  int32_t rank;
  int32_t stage;
  std::vector<int32_t> microbatches;
};

class ListScheduler {
 public:
  explicit ListScheduler(const Problem& problem);

  const std::vector<Queue>& queues() const { return queues_; }
  const std::vector<std::vector<int32_t>>& queues_of_rank() const { return queues_of_rank_; }

  // Makes an order; false if transfers block each other under these rules.
  bool run(const Rules& rules, Order& order);

 private:
  struct Edge {
    int32_t destination;
    double latency, occupancy;
    std::vector<int32_t> transfers;  // their readers, in the order in which they are made
    std::vector<double> read_ends;   // when they were used, in the order of use
    size_t num_started = 0;
    double free_at = 0;
  };
  struct Progress {  // of a queue
    int32_t forwards = 0, input_grads = 0, weight_grads = 0;
  };
  struct RankState {
    double free_at = 0;
    double wait_until = 0;
    double held = 0;
    double held_for_pending = 0;  // by weight gradients that could run
    double held_behind = 0;       // by microbatches after `oldest`
    int32_t oldest = 0;           // the first microbatch with a forward to run
    std::deque<int32_t> pending;  // weight gradients, in the order of their input gradients
    double next_time = 0;
    bool changed = true;
  };
  struct Choice {
    int32_t op = kNone;
    double wait_until = kForever;
  };

  void reset();
  double ready_time(int32_t op) const;
  bool fits(const RankState& state, int32_t rank, int32_t op, double flushed) const;
  double next_time(int32_t rank) const;
  Choice choose(int32_t rank, double now) const;
  void start(int32_t rank, int32_t op, double now);
  void hold(int32_t rank, int32_t microbatch, double change);
  void advance_oldest(int32_t rank);
  void pump(int32_t edge);
  int32_t forward_of(int32_t queue) const;
  int32_t input_grad_of(int32_t queue) const;

  const Problem& problem_;
  std::vector<Queue> queues_;
  std::vector<std::vector<int32_t>> queues_of_rank_;
  std::vector<int32_t> queue_of_cell_;
  std::vector<int32_t> edge_of_op_, edge_out_of_op_;  // over which its input comes, its result leaves
  std::vector<double> need_;                          // rank * num_microbatches + microbatch: for all of its forwards
  const Rules* rules_ = nullptr;

  std::vector<Edge> edges_;
  std::vector<Progress> progress_;
  std::vector<RankState> states_;
  std::vector<double> end_;      // per op, kForever: not started
  std::vector<double> arrival_;  // per op whose input comes over an edge, kForever: not known
  std::vector<double> held_by_;  // rank * num_microbatches + microbatch
};

}  // namespace pipert::search
