#include "search/order_moves.h"

#include <algorithm>

namespace pipert::search {

void OrderMoves::look_at(const Order& order, const OrderClock& clock, int32_t deciding_rank) {
  critical_.clear();
  Place place{deciding_rank, static_cast<int32_t>(order[deciding_rank].size()) - 1};
  while (place.index >= 0) {
    critical_.push_back(place);
    const int32_t op = order[place.rank][place.index];
    const bool follows = place.index > 0 && clock.end(order[place.rank][place.index - 1]) >= clock.start(op);
    const int32_t source = problem_.source_of(op);
    if (follows || source == kNone) {
      --place.index;
    } else {
      place = {problem_.rank_of(source), clock.place(source)};
    }
  }
}

Move OrderMoves::propose(const Order& order, Random& random) const {
  const Place& place = critical_[random.below(static_cast<int32_t>(critical_.size()))];
  const auto& ops = order[place.rank];
  const int32_t op = ops[place.index], num_ops = static_cast<int32_t>(ops.size());
  int32_t reach = 1;
  while (reach < num_ops && random.below(3) != 0) reach += 1 + random.below(reach);
  int32_t to = place.index;
  if (random.below(2) == 0) {
    while (to > 0 && place.index - to < reach && may_pass(ops[to - 1], op)) --to;
  } else {
    while (to + 1 < num_ops && to - place.index < reach && may_pass(op, ops[to + 1])) ++to;
  }
  return {place.rank, place.index, to};
}

bool OrderMoves::may_pass(int32_t earlier, int32_t later) const {
  if (problem_.cell_of(earlier) == problem_.cell_of(later)) return false;
  return problem_.pass_of(earlier) != problem_.pass_of(later) || problem_.stage_of(earlier) != problem_.stage_of(later);
}

void apply(const Move& move, Order& order) {
  const auto begin = order[move.rank].begin();
  if (move.from < move.to) {
    std::rotate(begin + move.from, begin + move.from + 1, begin + move.to + 1);
  } else {
    std::rotate(begin + move.to, begin + move.from, begin + move.from + 1);
  }
}

void undo(const Move& move, Order& order) { apply({move.rank, move.to, move.from}, order); }

}  // namespace pipert::search
