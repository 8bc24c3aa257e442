// All edges of a plan that this process has an end of, and what connects it with the other ranks.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/failure.h"
#include "transport/channel.h"
#include "transport/mesh.h"
#include "transport/topology.h"

namespace pipert {

class Channels {
 public:
  // All ranks in this process; the edges lie on the heap.
  static std::shared_ptr<Channels> local(Topology topology);
  // This process is one rank of several on this machine; the edges lie in shared memory. Blocks until all ranks are
  // connected and every edge has carried real bytes. Throws TransportError naming the rank that is not as it should be.
  static std::shared_ptr<Channels> shm(Topology topology, int32_t rank, const std::string& session, int64_t timeout_ms,
                                       const Interrupt& interrupt = {});
  ~Channels();
  Channels(const Channels&) = delete;
  Channels& operator=(const Channels&) = delete;

  const Topology& topology() const noexcept { return topology_; }
  // The rank that this process is; -1 when it is all of them.
  int32_t rank() const noexcept { return rank_; }
  bool serves(int32_t rank) const noexcept { return rank_ < 0 || rank_ == rank; }
  // Throws ConfigError unless `ranks` are those that are served.
  void check_serves(std::vector<int32_t> ranks) const;

  // The ends that this process has.
  SendEnd& send_end(int32_t edge) noexcept { return *send_ends_[edge]; }
  RecvEnd& recv_end(int32_t edge) noexcept { return *recv_ends_[edge]; }

  // What ended this process's work, if something did.
  FailureFlag& failure() noexcept { return failure_; }
  // Raises it, and tells the peers.
  void fail(Failure failure) noexcept;
  // Whether a rank has closed its channels: nothing more will come from it.
  bool left(int32_t rank) const noexcept { return mesh_ && mesh_->left(rank); }

  // One executor at a time: the ends count messages. False when there is one, or after a failure or close().
  bool claim() noexcept { return !failure_.raised() && !claimed_.exchange(true); }
  void release() noexcept { claimed_ = false; }

  // Says goodbye, and ends the step that runs, if one does. Memory that somebody looks at stays.
  void close() noexcept;
  bool closed() const noexcept { return closed_; }

 private:
  Channels(Topology topology, int32_t rank);
  void add_ends(int32_t edge, const std::shared_ptr<EdgeMemory>& memory);
  void try_edges(int64_t deadline_ns, const Interrupt& interrupt);

  Topology topology_;
  int32_t rank_;
  FailureFlag failure_;  // before mesh_, whose thread raises it
  std::vector<std::unique_ptr<SendEnd>> send_ends_;
  std::vector<std::unique_ptr<RecvEnd>> recv_ends_;
  std::unique_ptr<Mesh> mesh_;
  std::atomic<bool> claimed_{false};
  std::atomic<bool> closed_{false};
};

}  // namespace pipert
