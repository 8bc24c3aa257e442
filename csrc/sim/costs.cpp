#include "sim/costs.h"

#include <algorithm>
#include <map>
#include <string>
#include <utility>

#include "core/error.h"

namespace pipert {
namespace {

void check_size(const std::string& what, size_t size, size_t expected) {
  if (size == expected) return;
  throw ConfigError(what + " has " + std::to_string(size) + " entries, expected " + std::to_string(expected));
}

}  // namespace

OpTimes::OpTimes(const Plan& plan, const ClockCosts& costs)
    : plan_(plan),
      costs_(costs),
      times_(op_kind_table.size() * plan.num_stages, 0.0),
      lane_slowness_(plan.lanes.size(), 1.0),
      lane_edge_(plan.lanes.size(), costs.edge) {
  const size_t num_stages = plan.num_stages;
  for (size_t kind = 0; kind < costs.times.size(); ++kind) {
    const std::vector<double>& column = costs.times[kind];
    if (column.empty()) continue;
    check_size("the cost of " + std::string(op_kind_table[kind].text), column.size(), num_stages);
    std::copy(column.begin(), column.end(), times_.begin() + kind * num_stages);
  }
  if (!costs.scale.empty())
    check_size("the microbatches' scale", costs.scale.size(), num_stages * plan.num_microbatches);
  if (!costs.rank_speed.empty()) check_size("the ranks' speed", costs.rank_speed.size(), plan.num_ranks);
  if (!costs.jitter.empty()) check_size("the jitter", costs.jitter.size(), plan.num_ops());
  std::map<std::pair<int32_t, int32_t>, EdgeTimes> links;
  for (const auto& [source, destination, times] : costs.links) links[{source, destination}] = times;
  for (size_t lane = 0; lane < plan.lanes.size(); ++lane) {
    const auto [rank, kind, peer] = plan.lanes[lane];
    if (kind == LaneKind::COMPUTE && !costs.rank_speed.empty()) lane_slowness_[lane] = 1 / costs.rank_speed[rank];
    if (kind != LaneKind::SEND) continue;
    if (const auto link = links.find({rank, peer}); link != links.end()) lane_edge_[lane] = link->second;
  }
}

double OpTimes::local(int32_t op) const {
  const Op& item = plan_.ops[op];
  const std::span<const ComputePart> parts = item.compute_parts();
  const size_t num_stages = plan_.num_stages;
  double total = 0;
  if (parts.empty()) total = times_[static_cast<size_t>(item.kind) * num_stages + std::max(item.stage, 0)];
  for (const auto& [kind, stage, microbatch] : parts) {
    const double time = times_[static_cast<size_t>(kind) * num_stages + stage];
    total += costs_.scale.empty() ? time : time * costs_.scale[size_t(stage) * plan_.num_microbatches + microbatch];
  }
  if (parts.size() > 1) total *= costs_.overlap;
  return total * lane_slowness_[plan_.op_lane[op]] * jitter(op);
}

EdgeTimes OpTimes::transfer(int32_t send) const {
  auto [latency, occupancy] = lane_edge_[plan_.op_lane[send]];
  if (scope_of(plan_.ops[send].kind) == Scope::RANK) occupancy = 0;  // a norm is a few bytes
  return {latency * jitter(send), occupancy * jitter(send)};
}

}  // namespace pipert
