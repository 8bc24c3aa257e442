#include <algorithm>

#include "core/clock.h"
#include "executor/stream_executor.h"

namespace pipert {
namespace {

constexpr int kClockReadings = 5;

}  // namespace

// The device's clock is read against the host's where nothing else keeps an answer waiting.
int64_t StreamExecutor::host_time_of_beginning() {
  int64_t best_ns = -1;
  int64_t began_ns = 0;
  for (int reading = 0; reading < kClockReadings; ++reading) {
    const int64_t before_ns = now_ns();
    clock_stream_.view().record(anchor_.view());
    anchor_.view().synchronize();
    const int64_t took_ns = now_ns() - before_ns;
    if (best_ns >= 0 && took_ns >= best_ns) continue;
    best_ns = took_ns;
    began_ns = before_ns + took_ns / 2 - began_.view().ns_until(anchor_.view());
  }
  clock_uncertainty_ns_ = best_ns / 2;
  return began_ns;
}

// Of a message between ranks of this process, both ends have the times of the copy.
TraceRecord StreamExecutor::record_of(int32_t entry, int64_t began_ns) const {
  const StreamOp& op = program_.ops[entry];
  const int32_t sender = op.lane == LaneKind::RECV ? program_.entry_of[op.op - 1] : -1;
  const int32_t timed = sender >= 0 ? sender : entry;
  const int64_t start_ns = began_ns + began_.view().ns_until(events_.begin[timed].view());
  return {.op = static_cast<uint32_t>(op.op),
          .lane = static_cast<uint32_t>(plan_->op_lane[op.op]),
          .ready_ns = start_ns,
          .start_ns = start_ns,
          .end_ns = began_ns + began_.view().ns_until(events_.end[timed].view())};
}

std::span<const TraceRecord> StreamExecutor::trace() {
  records_.clear();
  if (!options_.trace || steps_ == 0 || !last_) return records_;
  last_.synchronize();
  check();
  const int64_t began_ns = host_time_of_beginning();
  int64_t turned_ns = began_ns;  // when the calling thread's stream turned to its next op
  for (int32_t entry = 0; entry < static_cast<int32_t>(program_.ops.size()); ++entry) {
    TraceRecord record = record_of(entry, began_ns);
    if (program_.ops[entry].stream < 0) {
      record.ready_ns = std::min(turned_ns, record.start_ns);
      turned_ns = record.end_ns;
    }
    records_.push_back(record);
  }
  return records_;
}

}  // namespace pipert
