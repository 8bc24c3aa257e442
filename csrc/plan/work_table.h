// Where the ops of each (stage, microbatch) stand in a plan.
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

class WorkTable {
 public:
  // Throws PlanError for an op that stands in the plan twice.
  explicit WorkTable(const Plan& plan);

  const StageWork& at(int32_t stage, int32_t microbatch) const {
    return work_[size_t{static_cast<uint32_t>(stage)} * num_microbatches_ + microbatch];
  }
  const StageWork& of(const Op& transfer) const { return at(transfer.stage, transfer.microbatch); }
  // No op computes a gradient.
  bool forward_only() const { return forward_only_; }

 private:
  int32_t num_microbatches_;
  bool forward_only_ = true;
  std::vector<StageWork> work_;
};

}  // namespace pipert
