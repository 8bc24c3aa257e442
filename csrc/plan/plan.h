// The plan: every op of one step on every rank, in one global order, with lanes, dependencies and slots.
//
// A row is an op; its number is the op's id and its place in the global order. A transfer is two adjacent rows, SEND
// and then RECV; a meeting of all ranks is one row of each, adjacent and in their order. A lane runs its ops in row
// order; `deps` holds what must have ended on other lanes of the same rank. A plan is immutable: parse_plan makes it,
// verify judges it, and the simulator and the executor only read it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "plan/op.h"

namespace pipert {

struct Lane {
  int32_t rank;
  LaneKind kind;
  int32_t peer;  // the rank at the other end; -1 on compute and collective lanes
  bool operator==(const Lane&) const = default;
};

// What a received message holds: the input of a stage, the gradient of its output, or (of a rank) gradient norms.
enum class Payload : uint8_t { INPUT, GRAD, NORM, TOTAL };

// Memory of its rank for one received message at a time.
struct Slot {
  int32_t rank;
  int32_t stage;  // that reads it; of gradient norms, the rank again
  Payload payload;
  bool operator==(const Slot&) const = default;
};

// Adjacent rows that start as one.
struct Unit {
  int32_t first;
  int32_t count;
};

struct Plan {
  std::string name;
  int32_t num_ranks = 0;
  int32_t num_stages = 0;
  int32_t num_microbatches = 0;
  int32_t recv_depth = 0;
  uint64_t fingerprint = 0;                 // of the text it was parsed from: two ranks with the same plan agree on it
  std::vector<std::vector<int32_t>> paths;  // copies of the model laid over the ranks: of each, every stage's rank
  std::vector<int32_t> path_of;             // per microbatch, the path that it takes
  std::vector<Lane> lanes;
  std::vector<Slot> slots;

  // One entry per op.
  std::vector<Op> ops;
  std::vector<int32_t> op_lane;
  std::vector<int32_t> op_slot;      // the slot that a RECV fills; -1 on other ops
  std::vector<int32_t> dep_offsets;  // num_ops + 1
  std::vector<int32_t> deps;

  // Derived.
  std::vector<std::vector<int32_t>> lane_ops;  // op ids per lane, ascending
  std::vector<int32_t> lane_position;          // where in its lane an op stands

  int32_t num_ops() const { return static_cast<int32_t>(ops.size()); }
  std::span<const int32_t> deps_of(int32_t op) const {
    return std::span(deps).subspan(dep_offsets[op], dep_offsets[op + 1] - dep_offsets[op]);
  }
  const Lane& lane_of_op(int32_t op) const { return lanes[op_lane[op]]; }
  int32_t rank_of(int32_t op) const { return lane_of_op(op).rank; }
  int32_t rank_of(int32_t stage, int32_t microbatch) const { return paths[path_of[microbatch]][stage]; }
  // The other end of a transfer, given either; -1 for any other op.
  int32_t partner_of(int32_t op) const {
    const LaneKind kind = lane_of(ops[op].kind);
    return kind == LaneKind::SEND ? op + 1 : kind == LaneKind::RECV ? op - 1 : -1;
  }
  // Both rows of a transfer, all of a meeting, or the op alone. Requires that meetings are adjacent rows.
  Unit unit_of(int32_t op) const {
    if (is_meeting(ops[op].kind)) return {op - rank_of(op), num_ranks};
    if (is_transfer(ops[op].kind)) return {std::min(op, partner_of(op)), 2};
    return {op, 1};
  }
  std::string text(int32_t op) const { return to_text(ops[op]); }
};

// Reads the JSON of a plan: structure, types and index ranges, nothing of its meaning. Throws PlanError.
Plan parse_plan(std::string_view json);

// Proves that a plan is complete and cannot deadlock (verify.cpp says what exactly). Throws PlanError.
void verify(const Plan& plan);

}  // namespace pipert
