// A small plan made by hand: a chain of one stage per rank, microbatch after microbatch forward and back, each rank's
// sends of `ahead` microbatches running before the first backward comes.
#pragma once

#include <algorithm>
#include <map>
#include <tuple>
#include <vector>

#include "plan/plan.h"

namespace pipert {

class HandPlan {
 public:
  // GPipe order: all forwards, then all backwards; one slot per RECV, `recv_depth` of them offered ahead.
  static Plan chain(int32_t num_ranks, int32_t num_microbatches, int32_t recv_depth = 2) {
    HandPlan hand;
    Plan& plan = hand.plan_;
    plan.name = "chain";
    plan.num_ranks = plan.num_stages = num_ranks;
    plan.num_microbatches = num_microbatches;
    plan.recv_depth = recv_depth;
    plan.fingerprint = static_cast<uint64_t>(num_ranks) * 1000003 + static_cast<uint64_t>(num_microbatches);
    plan.dep_offsets = {0};
    plan.path_of.assign(num_microbatches, 0);
    plan.paths.emplace_back();
    for (int32_t rank = 0; rank < num_ranks; ++rank) plan.paths[0].push_back(rank);
    std::vector<std::vector<int32_t>> users(2 * num_ranks);  // per rank and direction: ops that read a message
    for (int32_t mb = 0; mb < num_microbatches; ++mb) {
      int32_t recv = -1;
      for (int32_t rank = 0; rank < num_ranks; ++rank) {
        const int32_t op = hand.compute(OpKind::FORWARD, rank, mb, recv);
        if (rank > 0) users[2 * rank].push_back(op);
        if (rank + 1 == num_ranks) break;
        recv = hand.transfer(OpKind::SEND_F, OpKind::RECV_F, rank, rank + 1, mb, op, users[2 * (rank + 1)]);
      }
    }
    for (int32_t mb = 0; mb < num_microbatches; ++mb) {
      int32_t recv = -1;
      for (int32_t rank = num_ranks - 1; rank >= 0; --rank) {
        const int32_t op = hand.compute(OpKind::BACKWARD, rank, mb, recv);
        if (rank + 1 < num_ranks) users[2 * rank + 1].push_back(op);
        if (rank == 0) break;
        recv = hand.transfer(OpKind::SEND_B, OpKind::RECV_B, rank, rank - 1, mb, op, users[2 * (rank - 1) + 1]);
      }
    }
    return plan;
  }

  static int32_t find(const Plan& plan, const std::string& text) {
    for (int32_t op = 0; op < plan.num_ops(); ++op) {
      if (plan.text(op) == text) return op;
    }
    return -1;
  }

 private:
  int32_t add(OpKind kind, int32_t stage, int32_t mb, int32_t peer, int32_t slot, const std::vector<int32_t>& deps) {
    const auto key = std::tuple(stage, lane_of(kind), peer);
    auto found = lanes_.find(key);
    if (found == lanes_.end()) {
      found = lanes_.emplace(key, static_cast<int32_t>(plan_.lanes.size())).first;
      plan_.lanes.push_back({stage, lane_of(kind), peer});
      plan_.lane_ops.emplace_back();
    }
    const int32_t op = plan_.num_ops();
    plan_.ops.push_back(make_op(kind, stage, mb));
    plan_.op_lane.push_back(found->second);
    plan_.op_slot.push_back(slot);
    plan_.lane_position.push_back(static_cast<int32_t>(plan_.lane_ops[found->second].size()));
    plan_.lane_ops[found->second].push_back(op);
    plan_.deps.insert(plan_.deps.end(), deps.begin(), deps.end());
    plan_.dep_offsets.push_back(static_cast<int32_t>(plan_.deps.size()));
    return op;
  }

  int32_t compute(OpKind kind, int32_t stage, int32_t mb, int32_t recv) {
    return add(kind, stage, mb, -1, -1, recv < 0 ? std::vector<int32_t>{} : std::vector{recv});
  }

  // The RECV waits until the message `recv_depth` before it has been read.
  int32_t transfer(OpKind send, OpKind recv, int32_t from, int32_t to, int32_t mb, int32_t producer,
                   const std::vector<int32_t>& readers) {
    add(send, from, mb, to, -1, {producer});
    const auto ahead = static_cast<size_t>(plan_.recv_depth);
    const auto slot = static_cast<int32_t>(plan_.slots.size());
    plan_.slots.push_back({to, to, recv == OpKind::RECV_B ? Payload::GRAD : Payload::INPUT});
    return add(recv, to, mb, from, slot,
               readers.size() >= ahead ? std::vector{readers[readers.size() - ahead]} : std::vector<int32_t>{});
  }

  Plan plan_;
  std::map<std::tuple<int32_t, LaneKind, int32_t>, int32_t> lanes_;
};

}  // namespace pipert
