#include "search/order_clock.h"

#include <algorithm>

namespace pipert::search {

OrderClock::OrderClock(const Problem& problem)
    : problem_(problem),
      nodes_(problem.num_ops()),
      end_(problem.num_ops()),
      arrival_(problem.num_ops()),
      place_(problem.num_ops()),
      cursor_(problem.num_ranks),
      rank_start_(problem.num_ranks),
      rank_end_(problem.num_ranks) {
  std::vector<int32_t> edge_number(static_cast<size_t>(problem.num_ranks) * problem.num_ranks, kNone);
  for (int32_t op = 0; op < problem.num_ops(); ++op) {
    Node& node = nodes_[op];
    node.rank = problem.rank_of(op);
    node.source = problem.source_of(op);
    if (problem.pass_of(op) != Pass::FORWARD) node.needs = op - problem.num_cells();
    if (node.source == kNone || problem.rank_of(node.source) == node.rank) continue;
    const int32_t key = problem.rank_of(node.source) * problem.num_ranks + node.rank;
    if (edge_number[key] == kNone) {
      edge_number[key] = static_cast<int32_t>(edges_.size());
      edges_.push_back({node.rank, problem.latency[key], problem.occupancy[key], {}});
    }
    node.edge = edge_number[key];
    nodes_[node.source].reader_edge = node.edge;
    nodes_[node.source].reader = op;
  }
}

const Figures& OrderClock::run(const Order& order) {
  std::fill(end_.begin(), end_.end(), -1.0);
  std::fill(arrival_.begin(), arrival_.end(), -1.0);
  std::fill(cursor_.begin(), cursor_.end(), 0);
  std::fill(rank_end_.begin(), rank_end_.end(), 0.0);
  for (Edge& edge : edges_) {
    edge.transfers.clear();
    edge.num_started = 0;
    edge.free_at = 0;
    edge.last_read = edge.second_last_read = kNone;
  }
  for (const auto& ops : order) {
    for (size_t place = 0; place < ops.size(); ++place) place_[ops[place]] = static_cast<int32_t>(place);
  }
  for (bool moved = true; moved;) {
    moved = false;
    for (int32_t rank = 0; rank < problem_.num_ranks; ++rank) moved |= run_rank(rank, order[rank], order);
  }
  figures_ = {true};
  for (int32_t rank = 0; rank < problem_.num_ranks; ++rank) {
    figures_.complete &= cursor_[rank] == static_cast<int32_t>(order[rank].size());
    if (order[rank].empty() || !figures_.complete) continue;
    rank_start_[rank] = start(order[rank].front());
    const double span = rank_end_[rank] - rank_start_[rank];
    figures_.total_span += span;
    if (span > figures_.longest_span) {
      figures_.longest_span = span;
      figures_.longest_rank = rank;
    }
    if (rank_end_[rank] > figures_.makespan) {
      figures_.makespan = rank_end_[rank];
      figures_.last_rank = rank;
    }
  }
  return figures_;
}

bool OrderClock::run_rank(int32_t rank, const std::vector<int32_t>& ops, const Order& order) {
  int32_t& cursor = cursor_[rank];
  const int32_t before = cursor;
  double now = rank_end_[rank];
  for (; cursor < static_cast<int32_t>(ops.size()); ++cursor) {
    const int32_t op = ops[cursor];
    const Node& node = nodes_[op];
    double ready = now;
    if (node.needs != kNone && end_[node.needs] < 0) break;
    if (node.edge != kNone) {
      if (arrival_[op] < 0 && !arrive(op, order)) break;
      ready = std::max(ready, arrival_[op]);
    } else if (node.source != kNone) {
      if (end_[node.source] < 0) break;
      ready = std::max(ready, end_[node.source]);
    }
    end_[op] = now = ready + problem_.time[op];
    if (node.reader_edge != kNone) edges_[node.reader_edge].transfers.push_back(node.reader);
  }
  rank_end_[rank] = now;
  return cursor > before;
}

// Starts the transfers of an edge in turn, up to the one that `op` takes; false if that cannot be yet.
bool OrderClock::arrive(int32_t op, const Order& order) {
  Edge& edge = edges_[nodes_[op].edge];
  while (arrival_[op] < 0) {
    if (edge.num_started == edge.transfers.size()) return false;
    const int32_t reader = edge.transfers[edge.num_started];
    double start = std::max(edge.free_at, end_[nodes_[reader].source]);
    if (edge.second_last_read != kNone) {
      if (edge.second_last_read >= cursor_[edge.destination]) return false;
      start = std::max(start, end_[order[edge.destination][edge.second_last_read]]);
    }
    edge.free_at = start + edge.occupancy;
    arrival_[reader] = edge.free_at + edge.latency;
    ++edge.num_started;
    const int32_t place = place_[reader];
    if (place > edge.last_read) {
      edge.second_last_read = edge.last_read;
      edge.last_read = place;
    } else if (place > edge.second_last_read) {
      edge.second_last_read = place;
    }
  }
  return true;
}

double peak_memory(const Problem& problem, const std::vector<int32_t>& ops) {
  double held = 0, peak = 0;
  for (const int32_t op : ops) {
    const int32_t stage = problem.stage_of(op);
    switch (problem.pass_of(op)) {
      case Pass::FORWARD:
        held += problem.act[stage];
        peak = std::max(peak, held);
        break;
      case Pass::INPUT_GRAD:
        held -= problem.act[stage] - problem.act_w[stage];
        break;
      case Pass::WEIGHT_GRAD:
        held -= problem.act_w[stage];
        break;
    }
  }
  return peak;
}

}  // namespace pipert::search
