// Control connections between the processes of one machine: every rank with every other. They carry the hello, the
// memory of the edges, "I failed" and "goodbye"; tensors never. A thread watches them, so that a death is noticed.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/background_thread.h"
#include "core/failure.h"
#include "core/unique_fd.h"

namespace pipert {

struct MeshAddress {
  std::string session;  // the same on all ranks of a job, different between jobs; at most 256 bytes
  int32_t rank = 0;
  int32_t num_ranks = 0;
  uint64_t fingerprint = 0;
};

// Called now and then (at least every 50 ms) while a call blocks; throws to give up.
using Interrupt = std::function<void()>;

class Mesh {
 public:
  // Blocks until connected to every other rank. Throws TransportError: another plan or session, or somebody missing.
  Mesh(MeshAddress address, int64_t deadline_ns, const Interrupt& interrupt);
  ~Mesh();
  Mesh(const Mesh&) = delete;
  Mesh& operator=(const Mesh&) = delete;

  // Before watch(): passes a file descriptor to a peer; takes the next one that it passed.
  void pass_fd(int32_t peer, int fd);
  UniqueFd take_fd(int32_t peer, int64_t deadline_ns, const Interrupt& interrupt);

  // From here on a thread listens: what goes wrong with a peer is raised in `failure`, which must outlive the mesh.
  void watch(FailureFlag& failure);

  // Whether the peer said goodbye. All that it sent before is in place by then.
  bool left(int32_t peer) const noexcept { return left_[peer].load(std::memory_order_seq_cst); }

  // Tells everybody that this process failed, and through whom. Does nothing when it was told already.
  void tell(const Failure& failure) noexcept;

  // Says goodbye and hangs up.
  void close() noexcept;

 private:
  void connect_down(int32_t peer, int64_t deadline_ns, const Interrupt& interrupt);
  void accept_up(int listener, int64_t deadline_ns, const Interrupt& interrupt);
  void watch_loop(FailureFlag& failure) noexcept;
  bool listen_to(int32_t peer, FailureFlag& failure);
  void send_all(const std::string& message) noexcept;

  MeshAddress address_;
  int process_;  // a forked child must not speak for this process
  std::vector<UniqueFd> sockets_;
  std::vector<UniqueFd> processes_;  // pidfds: notice a death even if a forked child keeps the socket open
  std::unique_ptr<std::atomic<bool>[]> left_;
  UniqueFd stop_;
  BackgroundThread thread_;
  std::mutex send_mutex_;  // guards told_ and closed_
  bool told_ = false;
  bool closed_ = false;
};

}  // namespace pipert
