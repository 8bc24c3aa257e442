#include "executor/stream_executor.h"

namespace pipert {

// A lane is a line: how many of its ops are enqueued, and how many of those have ended.
std::string StreamExecutor::status() const {
  if (steps_ == 0) return "no step yet\n";
  std::string lines = "step " + std::to_string(progress_.step) + (replayed_ ? ", launched as a graph" : "") + "\n";
  const int32_t num_enqueued = num_enqueued_.load(std::memory_order_acquire);
  std::vector<int32_t> enqueued(plan_->lanes.size(), 0);
  std::vector<int32_t> ended(plan_->lanes.size(), 0);
  for (int32_t entry = 0; entry < num_enqueued && !replayed_ && !capturing_; ++entry) {
    const int32_t lane = plan_->op_lane[program_.ops[entry].op];
    ++enqueued[lane];
    ended[lane] += end_of(entry).happened() ? 1 : 0;
  }
  for (size_t index = 0; index < plan_->lanes.size(); ++index) {
    const Lane& lane = plan_->lanes[index];
    if (!channels_->serves(lane.rank) || plan_->lane_ops[index].empty()) continue;
    lines += "rank " + std::to_string(lane.rank) + " " + std::string(text_of(lane.kind));
    if (lane.peer >= 0) lines += (lane.kind == LaneKind::SEND ? " to " : " from ") + std::to_string(lane.peer);
    lines += ": " + std::to_string(enqueued[index]) + " of " + std::to_string(plan_->lane_ops[index].size()) +
             " ops enqueued, " + std::to_string(ended[index]) + " ended";
    const bool next = enqueued[index] > ended[index];
    if (next) lines += ", next is " + text(plan_->lane_ops[index][ended[index]]);
    lines += "\n";
  }
  const int32_t current = progress_.current.load(std::memory_order_relaxed);
  const int32_t awaited = progress_.awaited.load(std::memory_order_relaxed);
  if (awaited >= 0) {
    lines += "the host waits for the other end of " + text(awaited) + "\n";
  } else if (current >= 0) {
    lines += "the host enqueues " + text(current) + "\n";
  }
  if (channels_->host().failure().raised()) lines += "failed: " + channels_->host().failure().failure().text + "\n";
  return lines;
}

}  // namespace pipert
