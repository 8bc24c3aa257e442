// A communicator of one or two ranks. The calls of NCCL are made under one lock; a stream's thread runs what was
// enqueued and tells the outside nothing but how many groups it has done, and whether one failed.
#pragma once

#include <memory>
#include <vector>

#include "link.h"
#include "settings.h"

namespace fake_nccl {

class Communicator;

struct Transfer {
  bool sends = false;
  void* data = nullptr;
  size_t bytes = 0;
};

// The transfers of one communicator, on one stream, between ncclGroupStart and ncclGroupEnd.
struct Group {
  Communicator* communicator = nullptr;
  void* stream = nullptr;
  std::vector<Transfer> transfers;
  bool replayed = false;  // part of a graph: lives on
};

// Communicators are never destroyed: graphs and streams may still have their groups.
class Communicator {
 public:
  Communicator(int num_ranks, int rank) : num_ranks_(num_ranks), rank_(rank) {}

  bool valid_peer(int peer) const noexcept { return num_ranks_ == 1 ? peer == 0 : peer == 1 - rank_; }

  // What is started here is under way until state() was asked often enough, and the peer did its part.
  Result start_connecting(const pipert::nccl::UniqueId& id);
  void start(std::unique_ptr<Group> group);
  void start_finalizing() noexcept;
  Result state() noexcept;

  bool done() const noexcept { return num_done_.load(std::memory_order_relaxed) == num_started_; }
  void abort() noexcept { link_.hang_up(); }

  // From the thread of the stream.
  void run(const Group& group) noexcept;

 private:
  Result go_on();
  Result check_devices();
  Result enqueue();
  bool transfer(const Group& group) noexcept;
  bool transfer_to_self(const Group& group) noexcept;
  bool transfer_to_peer(const Transfer& transfer) noexcept;
  void fail(Result error, const char* text) noexcept;
  void stay_blocked() noexcept;

  const int num_ranks_;
  const int rank_;
  int device_ = 0;
  Link link_;
  bool connected_ = false;
  bool finalizing_ = false;
  int num_polls_ = 0;                            // until what is under way may be done
  std::vector<std::unique_ptr<Group>> started_;  // not yet on their streams
  uint64_t num_started_ = 0;
  std::atomic<uint64_t> num_done_{0};
  std::atomic<Result> error_{pipert::nccl::kSuccess};
};

// What ncclGetLastError() says.
void set_last_error(const char* text) noexcept;
const char* last_error() noexcept;

}  // namespace fake_nccl
