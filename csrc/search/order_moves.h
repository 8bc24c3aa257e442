// Changes of one op's place in an order, where they can shorten it.
//
// An order is as slow as its critical path: the chain of ops, each starting when the one before it ends or its result
// arrives, that leads to the last op of the rank that decides the figure. Only a move that breaks this chain can help,
// so a move takes an op of the chain out of its place, and puts it before ops of the chain or behind them.
#pragma once

#include <cstdint>
#include <vector>

#include "core/random.h"
#include "search/order_clock.h"
#include "search/problem.h"

namespace pipert::search {

struct Move {
  int32_t rank;
  int32_t from;
  int32_t to;
};

class OrderMoves {
 public:
  explicit OrderMoves(const Problem& problem) : problem_(problem) {}

  // Takes the critical path of the order that the clock has run last.
  void look_at(const Order& order, const OrderClock& clock, int32_t deciding_rank);
  // Proposes a move that keeps each cell's F, I, W and each stage's microbatches in their order; its places are equal
  // if it found none.
  Move propose(const Order& order, Random& random) const;

 private:
  struct Place {
    int32_t rank;
    int32_t index;
  };
  bool may_pass(int32_t earlier, int32_t later) const;

  const Problem& problem_;
  std::vector<Place> critical_;  // from the end of the step to its start
};

void apply(const Move& move, Order& order);
void undo(const Move& move, Order& order);

}  // namespace pipert::search
