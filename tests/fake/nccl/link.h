// What connects the two ranks of a communicator, in one process or in two: a socket, whose abstract address comes from
// the unique id. It carries the hello, the word that a first group was started, and the messages.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

namespace fake_nccl {

struct Hello {
  int32_t rank = 0;
  int32_t device = 0;
};

class Link {
 public:
  // Rank 0 listens. Says whether it may.
  bool open(const std::string& address, Hello own);
  // Goes on with what can be done without waiting; says whether the ranks know each other.
  bool connect();
  const Hello& peer() const noexcept { return peer_; }

  // Tells the peer that this rank's first group has been started, and asks whether the peer's has.
  bool meet();

  // From the thread of a stream. Blocks; false: the peer, or this rank, has hung up.
  bool send(const void* data, size_t bytes) noexcept;
  bool receive(void* data, size_t bytes) noexcept;

  // What is under way in send() and receive() ends, on both sides. From any thread.
  void hang_up() noexcept;
  bool hung_up() const noexcept { return hung_up_.load(std::memory_order_relaxed); }

 private:
  bool make_socket() noexcept;

  std::string address_;
  Hello own_;
  Hello peer_;
  int listener_ = -1;
  int socket_ = -1;
  bool greeted_ = false;
  bool told_ = false;
  bool met_ = false;
  std::atomic<bool> hung_up_{false};
};

}  // namespace fake_nccl
