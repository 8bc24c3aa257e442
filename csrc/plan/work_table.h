// Where the ops of each (stage, microbatch), and of each rank, stand in a plan.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "plan/plan.h"

namespace pipert {

// The row of each kind of op of one (stage, microbatch). -1: there is none.
struct StageWork {
  // A compute op's place: twice its row, plus one for the second part of an overlapped pair.
  int32_t forward = -1, recompute = -1, backward = -1, input_grad = -1, weight_grad = -1;
  int32_t send_f = -1, recv_f = -1, send_b = -1, recv_b = -1;

  int32_t& place(OpKind kind);
  // The place of what makes the gradient of the input: B or I.
  int32_t grad_place() const { return std::max(backward, input_grad); }
  // Rows of compute ops.
  int32_t forward_row() const { return forward / 2; }
  int32_t grad_row() const { return grad_place() / 2; }
  int32_t last_compute_row() const { return std::max({forward, backward, weight_grad}) / 2; }
};

// The row of each kind of op that is for a rank as a whole. -1: there is none.
struct RankWork {
  int32_t norm = -1, opt = -1, validate = -1, rollback = -1;
  int32_t send_norm = -1, recv_norm = -1, send_total = -1, recv_total = -1;
  // Of the ops for microbatches: the first that is no forward, and the last.
  int32_t first_backward = -1, last_compute = -1;

  int32_t& row(OpKind kind);
};

class WorkTable {
 public:
  // Throws PlanError for an op that stands in the plan twice.
  explicit WorkTable(const Plan& plan);

  const StageWork& at(int32_t stage, int32_t microbatch) const {
    return work_[size_t{static_cast<uint32_t>(stage)} * num_microbatches_ + microbatch];
  }
  const StageWork& of(const Op& transfer) const { return at(transfer.stage, transfer.microbatch); }
  const RankWork& rank(int32_t rank) const { return ranks_[rank]; }

  // Of the compute op that makes what a SEND sends, or that first reads what a RECV receives: its place and its row.
  int32_t compute_place(const Op& transfer) const;
  int32_t compute_row(const Op& transfer) const { return compute_place(transfer) / 2; }
  // No op computes a gradient.
  bool forward_only() const { return forward_only_; }

 private:
  int32_t num_microbatches_;
  bool forward_only_ = true;
  std::vector<StageWork> work_;
  std::vector<RankWork> ranks_;
};

}  // namespace pipert
