#include "communicator.h"

#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>

#include "driver.h"

namespace fake_nccl {
namespace {

using namespace pipert::nccl;

constexpr int kAllowsSharedGpu = 23000;

std::atomic<const char*> last_error_text{""};

// One operation at a time per process, where the environment says so.
class Turn {
 public:
  explicit Turn(const Link& link) noexcept : needed_(settings().serial) {
    while (needed_ && taken_.exchange(true, std::memory_order_acquire)) {
      if (link.hung_up()) needed_ = false;
      usleep(100);
    }
  }
  ~Turn() {
    if (needed_) taken_.store(false, std::memory_order_release);
  }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

 private:
  static inline std::atomic<bool> taken_{false};
  bool needed_;
};

std::string address_of(const UniqueId& id) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string address = "fake_nccl-";
  for (size_t i = 0; i < 16; ++i) {
    address += kDigits[static_cast<unsigned char>(id.bytes[i]) >> 4];
    address += kDigits[static_cast<unsigned char>(id.bytes[i]) & 15];
  }
  return address;
}

// A graph may run it again and again.
void keep(const Group* group) {
  static auto* const kept = new std::vector<const Group*>;
  kept->push_back(group);
}

void run_group(void* argument) {
  std::unique_ptr<Group> group(static_cast<Group*>(argument));
  group->communicator->run(*group);
  if (group->replayed) static_cast<void>(group.release());
}

}  // namespace

void set_last_error(const char* text) noexcept { last_error_text.store(text, std::memory_order_relaxed); }
const char* last_error() noexcept { return last_error_text.load(std::memory_order_relaxed); }

Result Communicator::start_connecting(const UniqueId& id) {
  if (Driver::get().context_get_device(&device_) != 0) {
    set_last_error("no CUDA context is current");
    return kUnhandledCudaError;
  }
  num_polls_ = settings().num_polls;
  if (num_ranks_ == 2 && !link_.open(address_of(id), {.rank = rank_, .device = device_})) {
    set_last_error("the unique id is in use");
    return kSystemError;
  }
  return kInProgress;
}

void Communicator::start(std::unique_ptr<Group> group) {
  started_.push_back(std::move(group));
  num_polls_ = settings().num_polls;
}

void Communicator::start_finalizing() noexcept {
  finalizing_ = true;
  num_polls_ = settings().num_polls;
}

Result Communicator::state() noexcept {
  const Result error = error_.load(std::memory_order_relaxed);
  if (error != kSuccess) return error;
  const Result result = go_on();
  if (result != kSuccess && result != kInProgress) error_.store(result, std::memory_order_relaxed);
  return result;
}

Result Communicator::go_on() {
  if (num_polls_ > 0) {
    --num_polls_;
    return kInProgress;
  }
  if (!connected_) {
    if (num_ranks_ == 2 && !link_.connect()) return kInProgress;
    if (const Result refused = check_devices()) return refused;
    connected_ = true;
  }
  // Connections are made by the first group, which takes both ranks.
  if (!started_.empty() && num_ranks_ == 2 && !link_.meet()) return kInProgress;
  if (const Result refused = enqueue()) return refused;
  return finalizing_ && !done() ? kInProgress : kSuccess;
}

Result Communicator::check_devices() {
  if (!settings().duplicate || num_ranks_ == 1 || link_.peer().device != device_) return kSuccess;
  const char* const allowed = std::getenv("NCCL_MULTI_RANK_GPU_ENABLE");
  if (settings().version >= kAllowsSharedGpu && allowed != nullptr && std::strcmp(allowed, "1") == 0) return kSuccess;
  set_last_error("Duplicate GPU detected : rank 0 and rank 1 both on CUDA device 1000");
  return kInvalidUsage;
}

Result Communicator::enqueue() {
  for (std::unique_ptr<Group>& group : std::exchange(started_, {})) {
    int capturing = 0;
    void* const stream = group->stream;
    if (Driver::get().stream_is_capturing(stream, &capturing) == 0) {
      group->replayed = capturing != 0;
      Group* const enqueued = group.release();
      if (capturing == 0) {
        ++num_started_;
      } else {
        keep(enqueued);
      }
      if (Driver::get().launch_host_function(stream, run_group, enqueued) == 0) continue;
      delete enqueued;
    }
    set_last_error("the CUDA stream takes no work");
    return kUnhandledCudaError;
  }
  return kSuccess;
}

void Communicator::run(const Group& group) noexcept {
  {
    const Turn turn(link_);
    if (const Result fault = next_fault("async")) fail(fault, "FAKE_NCCL_FAIL");
    if (error_.load(std::memory_order_relaxed) != kSuccess || !transfer(group)) stay_blocked();
  }
  if (!group.replayed) num_done_.fetch_add(1, std::memory_order_relaxed);
}

bool Communicator::transfer(const Group& group) noexcept {
  if (num_ranks_ == 1) return transfer_to_self(group);
  for (const Transfer& one : group.transfers) {
    if (transfer_to_peer(one)) continue;
    fail(kRemoteError, "the peer has gone");
    return false;
  }
  return true;
}

// The k-th send goes to the k-th receive.
bool Communicator::transfer_to_self(const Group& group) noexcept {
  auto receive = group.transfers.begin();
  for (const Transfer& send : group.transfers) {
    if (!send.sends) continue;
    while (receive != group.transfers.end() && receive->sends) ++receive;
    if (receive == group.transfers.end() || receive->bytes != send.bytes) {
      fail(kInvalidUsage, "a send and its receive differ in size");
      return false;
    }
    std::memcpy(receive->data, send.data, send.bytes);
    ++receive;
  }
  return true;
}

// Neither side goes on before both are there and agree.
bool Communicator::transfer_to_peer(const Transfer& transfer) noexcept {
  struct Announcement {
    uint64_t sends;
    uint64_t bytes;
  };
  const Announcement own{transfer.sends ? 1U : 0U, transfer.bytes};
  Announcement other{};
  if (!link_.send(&own, sizeof own) || !link_.receive(&other, sizeof other)) return false;
  if (own.sends == other.sends || own.bytes != other.bytes) {
    fail(kInvalidUsage, "a send and its receive differ in size");
    return false;
  }
  return transfer.sends ? link_.send(transfer.data, transfer.bytes) : link_.receive(transfer.data, transfer.bytes);
}

// The first error stays.
void Communicator::fail(Result error, const char* text) noexcept {
  Result none = kSuccess;
  if (error_.compare_exchange_strong(none, error, std::memory_order_relaxed)) set_last_error(text);
}

// What fails on the device hangs there until the communicator is aborted.
void Communicator::stay_blocked() noexcept {
  while (!link_.hung_up()) usleep(1'000);
}

}  // namespace fake_nccl
