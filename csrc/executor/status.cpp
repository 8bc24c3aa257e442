#include "executor/executor.h"

namespace pipert {

std::string Executor::status() const {
  const int32_t current = progress_.current.load(std::memory_order_relaxed);
  const int32_t awaited = progress_.awaited.load(std::memory_order_relaxed);
  const uint64_t steps = steps_;
  const auto progress = [steps](const Cursor& cursor) {
    const uint64_t before = steps == 0 ? 0 : (steps - 1) * cursor.ops_per_step;
    return std::to_string(cursor.finished.value() - before) + " of " + std::to_string(cursor.ops_per_step) +
           " ops finished";
  };
  std::string lines = steps == 0 ? "no step yet\n" : "step " + std::to_string(progress_.step) + "\n";
  for (int32_t rank = 0; rank < plan_->num_ranks; ++rank) {
    if (!channels_->serves(rank)) continue;
    lines += "rank " + std::to_string(rank) + " compute: " + progress(wiring_.compute[rank]);
    if (current >= 0 && plan_->rank_of(current) == rank) {
      lines += awaited >= 0 ? ", " + text(current) + " waits for " + text(awaited) : ", runs " + text(current);
    }
    lines += "\n";
    if (wiring_.collective[rank].ops_per_step > 0)
      lines += "rank " + std::to_string(rank) + " collective: " + progress(wiring_.collective[rank]) + "\n";
  }
  for (const std::unique_ptr<SendLane>& lane : wiring_.send_lanes) {
    const int32_t waiting = lane->waiting_op();
    lines += "rank " + std::to_string(lane->rank()) + " send to " + std::to_string(lane->peer()) + ": " +
             progress(lane->cursor()) + (waiting < 0 ? "" : ", " + text(waiting) + " waits for a place") + "\n";
  }
  for (const std::unique_ptr<RecvLane>& lane : wiring_.recv_lanes) {
    const uint64_t taken = lane->cursor().finished.value();
    lines += "rank " + std::to_string(lane->rank()) + " receive from " + std::to_string(lane->peer()) + ": " +
             progress(lane->cursor()) + ", " + std::to_string(lane->offered() - taken) + " offered and open, next is " +
             text(lane->ops()[taken % lane->ops().size()].op) + "\n";
  }
  if (channels_->failure().raised()) lines += "failed: " + channels_->failure().failure().text + "\n";
  return lines;
}

}  // namespace pipert
