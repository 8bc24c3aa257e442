#include "transport/nccl/nccl_communicator.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <mutex>
#include <utility>

#include "core/clock.h"
#include "core/error.h"
#include "core/log.h"

namespace pipert {
namespace {

using nccl::Api;
using nccl::Result;

constexpr int64_t kFinalizeNs = 5'000'000'000;  // that a destructor gives messages that are still under way
constexpr int kAllowsSharedGpu = 23000;

std::string describe(const Api& api, const std::string& what, Result result, nccl::Comm comm) {
  std::string text = what + " failed (NCCL " + nccl::version_text(api.version) + "): " + api.get_error_string(result);
  const char* const last = api.get_last_error(comm);
  if (last == nullptr || *last == '\0') return text;
  text += std::string(": ") + last;
  if (text.find("Duplicate GPU") == std::string::npos) return text;
  text += ". Two ranks on one GPU: ";
  text += api.version < kAllowsSharedGpu ? "NCCL 2.30 and newer allow it with NCCL_MULTI_RANK_GPU_ENABLE=1"
                                         : "this NCCL allows it with NCCL_MULTI_RANK_GPU_ENABLE=1";
  return text + ", and the ipc transport works on one GPU with any";
}

constexpr int kSource = 0;
constexpr int kDestination = 1;

bool good(Result result) noexcept { return result == nccl::kSuccess || result == nccl::kInProgress; }

// Calls `transfer(buffer)` for each, until one fails.
template <class Transfer>
Result for_each(std::span<const NcclBuffer> buffers, Transfer transfer) {
  for (const NcclBuffer& buffer : buffers) {
    if (buffer.num_bytes == 0) continue;
    if (const Result result = transfer(buffer); !good(result)) return result;
  }
  return nccl::kSuccess;
}

Result send_all(const Api& api, nccl::Comm comm, std::span<const NcclBuffer> buffers, int peer, void* stream) {
  return for_each(buffers, [&](const NcclBuffer& buffer) {
    return api.send(buffer.data, buffer.num_bytes, nccl::kInt8, peer, comm, stream);
  });
}

Result recv_all(const Api& api, nccl::Comm comm, std::span<const NcclBuffer> buffers, int peer, void* stream) {
  return for_each(buffers, [&](const NcclBuffer& buffer) {
    return api.recv(buffer.data, buffer.num_bytes, nccl::kInt8, peer, comm, stream);
  });
}

// Looks often at first, then less and less; the interrupt is called about every 10 ms.
class Patience {
 public:
  Patience(int64_t deadline_ns, const Interrupt& interrupt) : deadline_ns_(deadline_ns), interrupt_(interrupt) {}

  // Says whether the deadline has passed.
  bool wait() {
    if (++looks_ < 50) {
      sched_yield();
      return false;
    }
    const int64_t now = now_ns();
    if (now >= deadline_ns_) return true;
    if (interrupt_ && now - interrupted_ns_ >= 10'000'000) {
      interrupt_();
      interrupted_ns_ = now;
    }
    usleep(std::min(looks_, 1'000U));
    return false;
  }

 private:
  int64_t deadline_ns_;
  const Interrupt& interrupt_;
  int64_t interrupted_ns_ = 0;
  unsigned looks_ = 0;
};

}  // namespace

class NcclCommunicator::State {
 public:
  State(const Api& api, const nccl::UniqueId& id, int num_ranks, int rank)
      : api_(api), num_ranks_(num_ranks), rank_(rank) {
    nccl::Config config;
    config.blocking = 0;
    const Result result = api_.comm_init_rank_config(&comm_, num_ranks, id, rank, &config);
    if (good(result)) return;
    const std::string text = describe(api_, "ncclCommInitRankConfig", result, nullptr);
    abort();
    throw TransportError(text);
  }

  ~State() {
    if (healthy_ && finalize()) return;
    abort();
  }

  int num_ranks() const noexcept { return num_ranks_; }
  int rank() const noexcept { return rank_; }

  // Until the communicator may be used again.
  void await_ready(const char* what, int64_t deadline_ns, const Interrupt& interrupt) {
    Patience patience(deadline_ns, interrupt);
    healthy_ = false;
    while (!ready(what)) {
      if (!patience.wait()) continue;
      throw TransportError(std::string(what) + " took too long: is the process at the other end alive?");
    }
    healthy_ = true;
  }

  // Runs `enqueue(api, comm)`, which says how it went, as a group.
  template <class Enqueue>
  void group(const char* what, int64_t deadline_ns, const Interrupt& interrupt, Enqueue enqueue) {
    healthy_ = false;
    {
      const std::lock_guard lock(mutex_);
      check_not_aborted(what);
      check(what, api_.group_start());
      const Result enqueued = enqueue(api_, comm_);
      const Result ended = api_.group_end();
      check(what, enqueued);
      check(what, ended);
    }
    await_ready(what, deadline_ns, interrupt);
  }

  std::optional<std::string> poll() noexcept {
    const std::lock_guard lock(mutex_);
    if (comm_ == nullptr) return "the NCCL communicator was aborted";
    const Result result = async_result();
    if (good(result)) return std::nullopt;
    return describe(api_, "a message over NCCL", result, comm_);
  }

  void abort() noexcept {
    const std::lock_guard lock(mutex_);
    nccl::Comm const comm = std::exchange(comm_, nullptr);
    if (comm != nullptr) api_.comm_abort(comm);
  }

 private:
  void check_not_aborted(const char* what) const {
    if (comm_ == nullptr) throw TransportError(std::string(what) + " ended: the NCCL communicator was aborted");
  }

  void check(const char* what, Result result) const {
    if (!good(result)) throw TransportError(describe(api_, what, result, comm_));
  }

  Result async_result() const noexcept {
    Result result = nccl::kSuccess;
    const Result asked = api_.comm_get_async_error(comm_, &result);
    return asked == nccl::kSuccess ? result : asked;
  }

  bool ready(const char* what) {
    const std::lock_guard lock(mutex_);
    check_not_aborted(what);
    const Result result = async_result();
    check(what, result);
    return result == nccl::kSuccess;
  }

  // Says whether the communicator is gone.
  bool finalize() noexcept {
    try {
      {
        const std::lock_guard lock(mutex_);
        if (comm_ == nullptr) return true;
        check("ncclCommFinalize", api_.comm_finalize(comm_));
      }
      await_ready("ncclCommFinalize", now_ns() + kFinalizeNs, {});
      const std::lock_guard lock(mutex_);
      if (comm_ != nullptr) check("ncclCommDestroy", api_.comm_destroy(std::exchange(comm_, nullptr)));
      return true;
    } catch (const std::exception& error) {
      log_warning(error.what());
      return false;
    }
  }

  const Api& api_;
  const int num_ranks_;
  const int rank_;
  bool healthy_ = false;       // of the thread that uses it: whether nothing failed
  std::mutex mutex_;           // NCCL is called by one thread at a time; guards comm_
  nccl::Comm comm_ = nullptr;  // none after abort()
};

nccl::UniqueId make_nccl_unique_id() {
  const Api& api = Api::get();
  nccl::UniqueId id;
  const Result result = api.get_unique_id(&id);
  if (result != nccl::kSuccess) throw TransportError(describe(api, "ncclGetUniqueId", result, nullptr));
  return id;
}

NcclCommunicator::NcclCommunicator(std::unique_ptr<State> state) noexcept : state_(std::move(state)) {}
NcclCommunicator::NcclCommunicator(NcclCommunicator&& other) noexcept = default;
NcclCommunicator& NcclCommunicator::operator=(NcclCommunicator&& other) noexcept = default;
NcclCommunicator::~NcclCommunicator() = default;

NcclCommunicator NcclCommunicator::create(const nccl::UniqueId& id, int rank, int64_t deadline_ns,
                                          const Interrupt& interrupt) {
  PIPERT_CHECK(rank == 0 || rank == 1, "an edge has two ends");
  auto state = std::make_unique<State>(Api::get(), id, 2, rank);
  state->await_ready("connecting over NCCL", deadline_ns, interrupt);
  return NcclCommunicator(std::move(state));
}

NcclCommunicator NcclCommunicator::create_self_edge(int64_t deadline_ns, const Interrupt& interrupt) {
  auto state = std::make_unique<State>(Api::get(), make_nccl_unique_id(), 1, 0);
  state->await_ready("connecting over NCCL", deadline_ns, interrupt);
  return NcclCommunicator(std::move(state));
}

void NcclCommunicator::send(std::span<const NcclBuffer> buffers, void* stream, int64_t deadline_ns,
                            const Interrupt& interrupt) {
  PIPERT_CHECK(state_->num_ranks() == 2 && state_->rank() == kSource, "only the source of an edge sends");
  state_->group("sending over NCCL", deadline_ns, interrupt,
                [&](const Api& api, nccl::Comm comm) { return send_all(api, comm, buffers, kDestination, stream); });
}

void NcclCommunicator::recv(std::span<const NcclBuffer> buffers, void* stream, int64_t deadline_ns,
                            const Interrupt& interrupt) {
  PIPERT_CHECK(state_->rank() == kDestination, "only the destination of an edge receives");
  state_->group("receiving over NCCL", deadline_ns, interrupt,
                [&](const Api& api, nccl::Comm comm) { return recv_all(api, comm, buffers, kSource, stream); });
}

void NcclCommunicator::send_to_self(std::span<const NcclBuffer> from, std::span<const NcclBuffer> to, void* stream,
                                    int64_t deadline_ns, const Interrupt& interrupt) {
  PIPERT_CHECK(state_->num_ranks() == 1, "only a self-edge has both ends");
  state_->group("sending over NCCL", deadline_ns, interrupt, [&](const Api& api, nccl::Comm comm) {
    const Result sent = send_all(api, comm, from, kSource, stream);
    return sent == nccl::kSuccess ? recv_all(api, comm, to, kSource, stream) : sent;
  });
}

std::optional<std::string> NcclCommunicator::poll() noexcept { return state_->poll(); }

void NcclCommunicator::abort() noexcept { state_->abort(); }

}  // namespace pipert
