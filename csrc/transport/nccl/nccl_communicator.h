// One directed edge over NCCL: a nonblocking communicator of two ranks, of which 0 sends and 1 receives. Or of one
// rank, which sends to itself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "transport/mesh.h"
#include "transport/nccl/nccl_api.h"

namespace pipert {

// A piece of device memory. Both ends give the pieces of a message with the same sizes, in the same order.
struct NcclBuffer {
  void* data = nullptr;
  size_t num_bytes = 0;
};

// What both ends of an edge are created with; made by one of them. Throws TransportError.
nccl::UniqueId make_nccl_unique_id();

// All calls need the CUDA context of the device to be current. Those that take a deadline (now_ns()) and an Interrupt
// wait only for NCCL's own work on the host, which on the first message of an edge includes the peer's first call; they
// throw TransportError when NCCL fails, the deadline passes, or another thread aborts, and what the Interrupt throws.
// After that the communicator is good for abort() alone.
class NcclCommunicator {
 public:
  // Blocks until the other end does the same.
  static NcclCommunicator create(const nccl::UniqueId& id, int rank, int64_t deadline_ns, const Interrupt& interrupt);
  // Both ends at once.
  static NcclCommunicator create_self_edge(int64_t deadline_ns, const Interrupt& interrupt);

  NcclCommunicator(NcclCommunicator&& other) noexcept;
  NcclCommunicator& operator=(NcclCommunicator&& other) noexcept;
  // Ends the communicator in an orderly way, or aborts it where that does not work.
  ~NcclCommunicator();

  // Enqueue a message on the stream (a CUstream) of the end that this is, as one group.
  void send(std::span<const NcclBuffer> buffers, void* stream, int64_t deadline_ns, const Interrupt& interrupt);
  void recv(std::span<const NcclBuffer> buffers, void* stream, int64_t deadline_ns, const Interrupt& interrupt);
  // On a self-edge: enqueues both ends of a message on the stream.
  void send_to_self(std::span<const NcclBuffer> from, std::span<const NcclBuffer> to, void* stream, int64_t deadline_ns,
                    const Interrupt& interrupt);

  // What went wrong since, if something did. From any thread.
  std::optional<std::string> poll() noexcept;
  // Ends what is under way, on the device too. From any thread; calls of others throw.
  void abort() noexcept;

 private:
  class State;
  explicit NcclCommunicator(std::unique_ptr<State> state) noexcept;

  std::unique_ptr<State> state_;
};

}  // namespace pipert
