// Why a process stopped: raised once, from any thread, and looked at by every wait.
#pragma once

#include <atomic>
#include <mutex>
#include <string>
#include <utility>

namespace pipert {

enum class FailureKind { kPeerLost, kTransport, kTimeout, kAborted };

struct Failure {
  FailureKind kind = FailureKind::kAborted;
  int rank = -1;     // whose fault it is
  std::string op;    // the op that failed or waited, if one did
  std::string text;  // a sentence that names them
};

// The first failure stays. Once raised() is true, failure() does not change any more.
class FailureFlag {
 public:
  bool raised() const noexcept { return raised_.load(std::memory_order_seq_cst); }

  // Says whether this was the first.
  bool raise(Failure failure) {
    const std::lock_guard lock(mutex_);
    if (raised()) return false;
    failure_ = std::move(failure);
    raised_.store(true, std::memory_order_seq_cst);
    return true;
  }

  Failure failure() const {
    const std::lock_guard lock(mutex_);
    return failure_;
  }

 private:
  std::atomic<bool> raised_{false};
  mutable std::mutex mutex_;
  Failure failure_;
};

}  // namespace pipert
