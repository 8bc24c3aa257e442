// What the schedulers search on: the ops of one step with their times, places, transfers and memory, as flat columns.
//
// A cell is a (stage, microbatch): stage * num_microbatches + microbatch. Every cell has three ops, a forward F, an
// input gradient I and a weight gradient W; op = pass * num_cells + cell. All of a cell's ops run on the cell's rank.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

namespace pipert::search {

enum class Pass : int32_t { FORWARD = 0, INPUT_GRAD = 1, WEIGHT_GRAD = 2 };

inline constexpr int32_t kNone = -1;
inline constexpr double kForever = std::numeric_limits<double>::infinity();

struct Problem {
  int32_t num_ranks = 0;
  int32_t num_stages = 0;
  int32_t num_microbatches = 0;
  std::vector<int32_t> rank_of_cell;
  std::vector<double> time;          // per op
  std::vector<double> latency;       // of a transfer, per directed edge source * num_ranks + destination
  std::vector<double> occupancy;     // time for which a transfer keeps its edge from the next one, per directed edge
  std::vector<double> act;           // per stage, held from the start of F to the end of I
  std::vector<double> act_w;         // per stage, the part of it that is held on to the end of W
  std::vector<double> memory_limit;  // per rank, the most that it may hold; infinite for no limit

  int32_t num_cells() const { return num_stages * num_microbatches; }
  int32_t num_ops() const { return 3 * num_cells(); }
  int32_t cell(int32_t stage, int32_t microbatch) const { return stage * num_microbatches + microbatch; }
  int32_t op(Pass pass, int32_t cell) const { return static_cast<int32_t>(pass) * num_cells() + cell; }
  Pass pass_of(int32_t op) const { return static_cast<Pass>(op / num_cells()); }
  int32_t cell_of(int32_t op) const { return op % num_cells(); }
  int32_t stage_of(int32_t op) const { return cell_of(op) / num_microbatches; }
  int32_t microbatch_of(int32_t op) const { return op % num_microbatches; }
  int32_t rank_of(int32_t op) const { return rank_of_cell[cell_of(op)]; }
  // The op of another stage whose result this one takes: the forward before, the input gradient behind; or kNone.
  int32_t source_of(int32_t op) const;
  // The op of another stage that takes this one's result; or kNone.
  int32_t reader_of(int32_t op) const;
  // The time for which each rank computes.
  std::vector<double> work() const;
};

// The ops of every rank, in order.
using Order = std::vector<std::vector<int32_t>>;

// One microbatch after the other: slow, but in as little memory as any order needs.
Order one_by_one(const Problem& problem);

// Throws ConfigError where the columns do not fit together.
void check(const Problem& problem);

// Memory is a sum of many parts: a limit is kept up to this share of it.
inline constexpr double kMemoryTolerance = 1e-9;

}  // namespace pipert::search
