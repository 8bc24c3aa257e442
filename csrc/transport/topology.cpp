#include "transport/topology.h"

#include <algorithm>
#include <bit>
#include <map>
#include <string>

#include "core/error.h"

namespace pipert {
namespace {

constexpr uint32_t kMaxRingEntries = 64;

}  // namespace

Topology Topology::of(const Plan& plan, uint32_t min_ring_entries) {
  Topology topology;
  topology.num_ranks = plan.num_ranks;
  topology.fingerprint = plan.fingerprint;
  topology.edge_of_lane.assign(plan.lanes.size(), -1);
  topology.edge_slot.assign(plan.slots.size(), -1);
  const uint32_t ring =
      std::clamp(std::bit_ceil(static_cast<uint32_t>(plan.recv_depth)), min_ring_entries, kMaxRingEntries);

  std::map<std::pair<int32_t, int32_t>, int32_t> edge_between;
  std::vector<size_t> num_messages;
  std::vector<int32_t> edge_of_slot(plan.slots.size(), -1);
  for (size_t index = 0; index < plan.lanes.size(); ++index) {
    const Lane& lane = plan.lanes[index];
    if (lane.kind != LaneKind::RECV || plan.lane_ops[index].empty()) continue;
    const auto edge = static_cast<int32_t>(topology.edges.size());
    if (!edge_between.emplace(std::pair(lane.peer, lane.rank), edge).second) {
      throw PlanError("two lanes receive from rank " + std::to_string(lane.peer), {.rank = lane.rank});
    }
    topology.edge_of_lane[index] = edge;
    topology.edges.push_back({.source = lane.peer, .destination = lane.rank, .ring_entries = ring});
    num_messages.push_back(plan.lane_ops[index].size());
    for (const int32_t op : plan.lane_ops[index]) {
      const int32_t slot = plan.op_slot[op];
      if (slot < 0) throw PlanError(plan.text(op) + " has no slot", {.rank = lane.rank, .op = plan.text(op)});
      if (edge_of_slot[slot] == -1) {
        edge_of_slot[slot] = edge;
        topology.edge_slot[slot] = static_cast<int32_t>(topology.edges.back().num_slots++);
      } else if (edge_of_slot[slot] != edge) {
        throw PlanError("slot " + std::to_string(slot) + " receives from two ranks",
                        {.rank = lane.rank, .op = plan.text(op)});
      }
    }
  }
  for (size_t index = 0; index < plan.lanes.size(); ++index) {
    const Lane& lane = plan.lanes[index];
    if (lane.kind != LaneKind::SEND || plan.lane_ops[index].empty()) continue;
    const auto found = edge_between.find({lane.rank, lane.peer});
    if (found == edge_between.end() || num_messages[found->second] != plan.lane_ops[index].size()) {
      throw PlanError("rank " + std::to_string(lane.rank) + " sends " + std::to_string(plan.lane_ops[index].size()) +
                          " messages to rank " + std::to_string(lane.peer) + ", which receives " +
                          std::to_string(found == edge_between.end() ? 0 : num_messages[found->second]),
                      {.rank = lane.rank});
    }
    topology.edge_of_lane[index] = found->second;
    num_messages[found->second] = 0;
    edge_between.erase(found);
  }
  if (!edge_between.empty()) {
    const auto [source, destination] = edge_between.begin()->first;
    throw PlanError("rank " + std::to_string(destination) + " receives from rank " + std::to_string(source) +
                        ", which does not send to it",
                    {.rank = destination});
  }
  return topology;
}

}  // namespace pipert
