#include "search/list_scheduler.h"

#include <algorithm>

namespace pipert::search {

ListScheduler::ListScheduler(const Problem& problem)
    : problem_(problem),
      queues_of_rank_(problem.num_ranks),
      queue_of_cell_(problem.num_cells()),
      edge_of_op_(problem.num_ops(), kNone),
      edge_out_of_op_(problem.num_ops(), kNone),
      need_(static_cast<size_t>(problem.num_ranks) * problem.num_microbatches, 0.0),
      states_(problem.num_ranks),
      end_(problem.num_ops()),
      arrival_(problem.num_ops()),
      held_by_(need_.size()) {
  std::vector<int32_t> queue_number(static_cast<size_t>(problem.num_ranks) * problem.num_stages, kNone);
  for (int32_t cell = 0; cell < problem.num_cells(); ++cell) {
    const int32_t stage = cell / problem.num_microbatches, microbatch = cell % problem.num_microbatches;
    const int32_t rank = problem.rank_of_cell[cell];
    int32_t& queue = queue_number[rank * problem.num_stages + stage];
    if (queue == kNone) {
      queue = static_cast<int32_t>(queues_.size());
      queues_.push_back({rank, stage, {}});
      queues_of_rank_[rank].push_back(queue);
    }
    queues_[queue].microbatches.push_back(microbatch);
    queue_of_cell_[cell] = queue;
    need_[rank * problem.num_microbatches + microbatch] += problem.act[stage];
  }
  progress_.resize(queues_.size());
  std::vector<int32_t> edge_number(static_cast<size_t>(problem.num_ranks) * problem.num_ranks, kNone);
  for (int32_t op = 0; op < problem.num_ops(); ++op) {
    const int32_t source = problem.source_of(op), rank = problem.rank_of(op);
    if (source == kNone || problem.rank_of(source) == rank) continue;
    const int32_t key = problem.rank_of(source) * problem.num_ranks + rank;
    if (edge_number[key] == kNone) {
      edge_number[key] = static_cast<int32_t>(edges_.size());
      edges_.push_back({rank, problem.latency[key], problem.occupancy[key], {}, {}});
    }
    edge_of_op_[op] = edge_out_of_op_[source] = edge_number[key];
  }
}

void ListScheduler::reset() {
  std::fill(end_.begin(), end_.end(), kForever);
  std::fill(arrival_.begin(), arrival_.end(), kForever);
  std::fill(held_by_.begin(), held_by_.end(), 0.0);
  std::fill(progress_.begin(), progress_.end(), Progress{});
  for (Edge& edge : edges_) {
    edge.transfers.clear();
    edge.read_ends.clear();
    edge.num_started = 0;
    edge.free_at = 0;
  }
  for (int32_t rank = 0; rank < problem_.num_ranks; ++rank) {
    states_[rank] = RankState{};
    advance_oldest(rank);
  }
}

bool ListScheduler::run(const Rules& rules, Order& order) {
  rules_ = &rules;
  reset();
  order.resize(problem_.num_ranks);
  for (auto& ops : order) ops.clear();
  for (int32_t num_started = 0; num_started < problem_.num_ops();) {
    int32_t first = 0;
    for (int32_t rank = 0; rank < problem_.num_ranks; ++rank) {
      RankState& state = states_[rank];
      if (state.changed) {
        state.next_time = next_time(rank);
        state.changed = false;
      }
      if (state.next_time < states_[first].next_time) first = rank;
    }
    const double now = states_[first].next_time;
    if (now == kForever) return false;
    const Choice choice = choose(first, now);
    states_[first].changed = true;
    if (choice.op == kNone) {
      states_[first].wait_until = choice.wait_until;
      if (choice.wait_until <= now) return false;
      continue;
    }
    start(first, choice.op, now);
    order[first].push_back(choice.op);
    ++num_started;
  }
  return true;
}

int32_t ListScheduler::forward_of(int32_t queue) const {
  const auto& [rank, stage, microbatches] = queues_[queue];
  const int32_t next = progress_[queue].forwards;
  if (next == static_cast<int32_t>(microbatches.size())) return kNone;
  return problem_.op(Pass::FORWARD, problem_.cell(stage, microbatches[next]));
}

int32_t ListScheduler::input_grad_of(int32_t queue) const {
  const auto& [rank, stage, microbatches] = queues_[queue];
  const int32_t next = progress_[queue].input_grads;
  if (next == progress_[queue].forwards) return kNone;
  return problem_.op(Pass::INPUT_GRAD, problem_.cell(stage, microbatches[next]));
}

double ListScheduler::ready_time(int32_t op) const {
  if (edge_of_op_[op] != kNone) return arrival_[op];
  const int32_t source = problem_.source_of(op);
  return source == kNone ? 0.0 : end_[source];
}

// Whether a forward may start now, had the rank given back `flushed`.
bool ListScheduler::fits(const RankState& state, int32_t rank, int32_t op, double flushed) const {
  const double act = problem_.act[problem_.stage_of(op)];
  const double limit = problem_.memory_limit[rank] * (1 + kMemoryTolerance);
  if (state.held - flushed + act > limit) return false;
  if (problem_.microbatch_of(op) == state.oldest || queues_of_rank_[rank].size() == 1) return true;
  return state.held_behind + act + need_[rank * problem_.num_microbatches + state.oldest] <= limit;
}

// When the rank can do, or must think about, something.
double ListScheduler::next_time(int32_t rank) const {
  const RankState& state = states_[rank];
  double time = state.pending.empty() ? kForever : state.wait_until;
  for (const int32_t queue : queues_of_rank_[rank]) {
    const Progress& progress = progress_[queue];
    if (const int32_t op = input_grad_of(queue); op != kNone) time = std::min(time, ready_time(op));
    const int32_t op = forward_of(queue);
    if (op == kNone || progress.forwards - progress.input_grads >= rules_->ahead[queue]) continue;
    if (fits(state, rank, op, 0)) time = std::min(time, ready_time(op));
  }
  return std::max(time, state.free_at);
}

ListScheduler::Choice ListScheduler::choose(int32_t rank, double now) const {
  const RankState& state = states_[rank];
  const RankRules& rules = rules_->ranks[rank];
  int32_t forward = kNone, input_grad = kNone;
  bool forward_lacks_memory = false;
  double next_arrival = kForever;
  for (const int32_t queue : queues_of_rank_[rank]) {  // by ascending stages
    const Progress& progress = progress_[queue];
    if (const int32_t op = input_grad_of(queue); op != kNone) {
      const double ready = ready_time(op);
      if (ready > now) {
        next_arrival = std::min(next_arrival, ready);
      } else if (input_grad == kNone || rules.late_grad_first) {
        input_grad = op;
      }
    }
    const int32_t op = forward_of(queue);
    if (op == kNone || progress.forwards - progress.input_grads >= rules_->ahead[queue]) continue;
    const double ready = ready_time(op);
    const bool fits_now = fits(state, rank, op, 0);
    if (ready > now) {
      if (fits_now) next_arrival = std::min(next_arrival, ready);
    } else if (!fits_now) {
      forward_lacks_memory |= fits(state, rank, op, state.held_for_pending);
    } else if (forward == kNone || rules.late_forward_first) {
      forward = op;
    }
  }
  if (rules.grad_first && input_grad != kNone) return {input_grad};
  if (forward != kNone) return {forward};
  const bool can_recycle = forward_lacks_memory && !state.pending.empty();
  if (can_recycle && rules.recycle_first) return {state.pending.front()};
  if (input_grad != kNone) return {input_grad};
  if (can_recycle) return {state.pending.front()};
  if (state.pending.empty()) return {kNone, next_arrival};
  const double time = problem_.time[state.pending.front()];
  if (now + (1 - rules.overrun) * time <= next_arrival) return {state.pending.front()};
  return {kNone, next_arrival};
}

void ListScheduler::start(int32_t rank, int32_t op, double now) {
  RankState& state = states_[rank];
  end_[op] = state.free_at = now + problem_.time[op];
  state.wait_until = 0;
  const int32_t stage = problem_.stage_of(op), microbatch = problem_.microbatch_of(op);
  Progress& progress = progress_[queue_of_cell_[problem_.cell_of(op)]];
  switch (problem_.pass_of(op)) {
    case Pass::FORWARD:
      ++progress.forwards;
      hold(rank, microbatch, problem_.act[stage]);
      if (microbatch == state.oldest) advance_oldest(rank);
      break;
    case Pass::INPUT_GRAD:
      ++progress.input_grads;
      hold(rank, microbatch, problem_.act_w[stage] - problem_.act[stage]);
      state.pending.push_back(op + problem_.num_cells());
      state.held_for_pending += problem_.act_w[stage];
      break;
    case Pass::WEIGHT_GRAD:
      ++progress.weight_grads;
      hold(rank, microbatch, -problem_.act_w[stage]);
      state.pending.pop_front();
      state.held_for_pending -= problem_.act_w[stage];
      break;
  }
  if (const int32_t edge = edge_of_op_[op]; edge != kNone) {
    edges_[edge].read_ends.push_back(end_[op]);
    pump(edge);
  }
  if (const int32_t edge = edge_out_of_op_[op]; edge != kNone) {
    edges_[edge].transfers.push_back(problem_.reader_of(op));
    pump(edge);
  }
}

void ListScheduler::hold(int32_t rank, int32_t microbatch, double change) {
  RankState& state = states_[rank];
  held_by_[rank * problem_.num_microbatches + microbatch] += change;
  state.held += change;
  if (microbatch > state.oldest) state.held_behind += change;
}

void ListScheduler::advance_oldest(int32_t rank) {
  RankState& state = states_[rank];
  int32_t oldest = problem_.num_microbatches;
  for (const int32_t queue : queues_of_rank_[rank]) {
    const int32_t op = forward_of(queue);
    if (op != kNone) oldest = std::min(oldest, problem_.microbatch_of(op));
  }
  for (int32_t microbatch = state.oldest + 1; microbatch <= oldest && microbatch < problem_.num_microbatches;
       ++microbatch) {
    state.held_behind -= held_by_[rank * problem_.num_microbatches + microbatch];
  }
  state.oldest = oldest;
}

// Starts what may start on an edge.
void ListScheduler::pump(int32_t edge_number) {
  Edge& edge = edges_[edge_number];
  for (; edge.num_started < edge.transfers.size(); ++edge.num_started) {
    const size_t number = edge.num_started;
    const int32_t reader = edge.transfers[number];
    double start = std::max(edge.free_at, end_[problem_.source_of(reader)]);
    if (number >= 2) {
      if (edge.read_ends.size() < number - 1) return;
      start = std::max(start, edge.read_ends[number - 2]);
    }
    edge.free_at = start + edge.occupancy;
    arrival_[reader] = edge.free_at + edge.latency;
    states_[edge.destination].changed = true;
  }
}

}  // namespace pipert::search
