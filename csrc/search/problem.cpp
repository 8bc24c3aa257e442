#include "search/problem.h"

#include <algorithm>
#include <string>

#include "core/error.h"

namespace pipert::search {
namespace {

void check_size(const char* name, size_t size, size_t expected) {
  if (size == expected) return;
  throw ConfigError(std::string(name) + " has " + std::to_string(size) + " entries, expected " +
                    std::to_string(expected));
}

}  // namespace

int32_t Problem::source_of(int32_t op) const {
  switch (pass_of(op)) {
    case Pass::FORWARD:
      return stage_of(op) == 0 ? kNone : op - num_microbatches;
    case Pass::INPUT_GRAD:
      return stage_of(op) == num_stages - 1 ? kNone : op + num_microbatches;
    default:
      return kNone;
  }
}

int32_t Problem::reader_of(int32_t op) const {
  switch (pass_of(op)) {
    case Pass::FORWARD:
      return stage_of(op) == num_stages - 1 ? kNone : op + num_microbatches;
    case Pass::INPUT_GRAD:
      return stage_of(op) == 0 ? kNone : op - num_microbatches;
    default:
      return kNone;
  }
}

std::vector<double> Problem::work() const {
  std::vector<double> total(num_ranks, 0.0);
  for (int32_t op = 0; op < num_ops(); ++op) total[rank_of(op)] += time[op];
  return total;
}

Order one_by_one(const Problem& problem) {
  Order order(problem.num_ranks);
  const auto run = [&](Pass pass, int32_t cell) {
    order[problem.rank_of_cell[cell]].push_back(problem.op(pass, cell));
  };
  for (int32_t microbatch = 0; microbatch < problem.num_microbatches; ++microbatch) {
    for (int32_t stage = 0; stage < problem.num_stages; ++stage) run(Pass::FORWARD, problem.cell(stage, microbatch));
    for (int32_t stage = problem.num_stages - 1; stage >= 0; --stage) {
      run(Pass::INPUT_GRAD, problem.cell(stage, microbatch));
      run(Pass::WEIGHT_GRAD, problem.cell(stage, microbatch));
    }
  }
  return order;
}

void check(const Problem& problem) {
  if (problem.num_ranks < 1 || problem.num_stages < 1 || problem.num_microbatches < 1) {
    throw ConfigError("a schedule needs at least one rank, one stage and one microbatch");
  }
  const auto num_edges = static_cast<size_t>(problem.num_ranks) * problem.num_ranks;
  check_size("rank_of_cell", problem.rank_of_cell.size(), problem.num_cells());
  check_size("time", problem.time.size(), problem.num_ops());
  check_size("latency", problem.latency.size(), num_edges);
  check_size("occupancy", problem.occupancy.size(), num_edges);
  check_size("act", problem.act.size(), problem.num_stages);
  check_size("act_w", problem.act_w.size(), problem.num_stages);
  check_size("memory_limit", problem.memory_limit.size(), problem.num_ranks);
  for (const int32_t rank : problem.rank_of_cell) {
    if (rank < 0 || rank >= problem.num_ranks) throw ConfigError("there is no rank " + std::to_string(rank));
  }
}

}  // namespace pipert::search
