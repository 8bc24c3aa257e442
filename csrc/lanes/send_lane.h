// The sending end of an edge on the host. Small messages whose place is waiting are copied right away by the compute
// thread, which saves waking anybody; the others by the lane's own thread, which also waits for the receiver.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "core/background_thread.h"
#include "lanes/cursor.h"
#include "lanes/recv_lane.h"
#include "trace/nvtx.h"
#include "trace/record.h"
#include "transport/channels.h"

namespace pipert {

struct SendOp {
  int32_t op = -1;
  std::string text = {};
  std::vector<Dependency> dependencies = {};
  std::vector<RecvLane*> frees = {};  // where a slot may become free when this op has finished
  TraceRecord* record = nullptr;
  NvtxOp nvtx = {};

  // What to send, put there by a handler that runs before the dependencies hold.
  std::vector<Segment> segments = {};
  std::vector<std::byte> header = {};
  size_t num_bytes = 0;
  uint64_t posted_steps = 0;  // the step that it was put there for, plus one
};

class SendLane {
 public:
  SendLane(int32_t rank, int32_t peer, std::vector<SendOp> ops, SendEnd& end, Channels& channels, int64_t timeout_ns);
  ~SendLane();
  SendLane(const SendLane&) = delete;
  SendLane& operator=(const SendLane&) = delete;

  int32_t rank() const noexcept { return rank_; }
  int32_t peer() const noexcept { return peer_; }
  Cursor& cursor() noexcept { return cursor_; }
  std::vector<SendOp>& ops() noexcept { return ops_; }

  // From the compute thread, after an op that a SEND here depends on has finished (its cursor has moved).
  void nudge();

  // After the failure flag was raised: returns when nothing is being copied any more, and never will be.
  void quiesce() { const std::lock_guard lock(mutex_); }

  // The op that the lane's thread waits to find a place for; -1 if it waits for none.
  int32_t waiting_op() const noexcept { return waiting_op_.load(std::memory_order_relaxed); }

 private:
  void loop();
  bool startable() const noexcept;
  bool await_place();
  void run_next();
  SendOp& next() noexcept { return ops_[cursor_.finished.value() % ops_.size()]; }
  void fail(FailureKind kind, int32_t culprit, const std::string& text);

  int32_t rank_;
  int32_t peer_;
  std::vector<SendOp> ops_;
  SendEnd& end_;
  Channels& channels_;
  int64_t timeout_ns_;
  Cursor cursor_;
  std::mutex mutex_;  // held by whoever runs ops of this lane: its thread or the compute thread
  Counter nudges_;    // there may be something to do
  std::atomic<bool> stop_{false};
  std::atomic<int32_t> waiting_op_{-1};
  BackgroundThread thread_;
};

}  // namespace pipert
