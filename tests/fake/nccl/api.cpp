// The calls that the fake NCCL exports, as the real libnccl.so.2 has them.

#include <fcntl.h>
#include <unistd.h>

#include <map>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "communicator.h"
#include "driver.h"

#define FAKE_NCCL_EXPORT extern "C" __attribute__((visibility("default")))

namespace fake_nccl {
namespace {

using namespace pipert::nccl;

// Never destroyed: the threads of streams outlive main().
struct Library {
  std::mutex mutex;
  std::set<Communicator*> live;
  std::vector<std::unique_ptr<Communicator>> all;
};

Library& library() {
  static auto* const library = new Library;
  return *library;
}

// Groups are a thread's own.
struct OpenGroup {
  int depth = 0;
  std::vector<std::pair<Communicator*, void*>> order;
  std::map<std::pair<Communicator*, void*>, std::vector<Transfer>> transfers;
  Result error = kSuccess;
};
thread_local OpenGroup open_group;

Result refuse(Result result, const char* why) {
  set_last_error(why);
  return result;
}

// Runs `body` with the library locked, unless a fault was asked for.
template <class Body>
Result call(const char* function, Body body) {
  const std::lock_guard lock(library().mutex);
  if (const Result fault = next_fault(function)) return refuse(fault, "FAKE_NCCL_FAIL");
  return body();
}

// Runs `body` with a communicator that is there.
template <class Body>
Result call_with(const char* function, Comm comm, Body body) {
  return call(function, [&]() -> Result {
    auto* const communicator = reinterpret_cast<Communicator*>(comm);
    if (!library().live.contains(communicator)) return refuse(kInvalidArgument, "no such communicator");
    return body(*communicator);
  });
}

Result check_ready(Communicator& communicator) {
  const Result state = communicator.state();
  if (state != kInProgress) return state;
  return refuse(kInvalidArgument, "the communicator is used before its last operation is no longer in progress");
}

Result close_group() {
  Result result = std::exchange(open_group.error, kSuccess);
  for (const auto& key : std::exchange(open_group.order, {})) {
    auto group = std::make_unique<Group>();
    group->communicator = key.first;
    group->stream = key.second;
    group->transfers = std::move(open_group.transfers[key]);
    if (result != kSuccess && result != kInProgress) break;
    key.first->start(std::move(group));
    result = settings().num_polls > 0 ? kInProgress : key.first->state();
  }
  open_group.transfers.clear();
  return result;
}

Result add_transfer(const char* function, Transfer transfer, int peer, Comm comm, Stream stream) {
  return call_with(function, comm, [&](Communicator& communicator) -> Result {
    Result result = check_ready(communicator);
    if (result == kSuccess && !communicator.valid_peer(peer)) result = refuse(kInvalidArgument, "no such rank");
    if (result == kSuccess) {
      auto& transfers = open_group.transfers[{&communicator, stream}];
      if (transfers.empty()) open_group.order.emplace_back(&communicator, stream);
      transfers.push_back(transfer);
    } else {
      open_group.error = result;
    }
    return open_group.depth > 0 ? result : close_group();
  });
}

size_t bytes_of(size_t count, int type) {
  constexpr size_t kBytes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2};
  return count * kBytes[type];
}

}  // namespace

FAKE_NCCL_EXPORT Result ncclGetVersion(int* version) {
  return call(__func__, [&] {
    *version = settings().version;
    return kSuccess;
  });
}

FAKE_NCCL_EXPORT Result ncclGetUniqueId(UniqueId* id) {
  return call(__func__, [&]() -> Result {
    const int source = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
    const ssize_t got = read(source, id->bytes, sizeof id->bytes);
    close(source);
    return got == sizeof id->bytes ? kSuccess : kSystemError;
  });
}

FAKE_NCCL_EXPORT Result ncclCommInitRankConfig(Comm* comm, int num_ranks, UniqueId id, int rank, Config* config) {
  return call(__func__, [&]() -> Result {
    *comm = nullptr;
    if (config == nullptr || config->size < sizeof(Config) || config->magic != 0xCAFEBEEF || config->blocking != 0) {
      return refuse(kInvalidArgument, "not a config of a nonblocking communicator");
    }
    if (num_ranks < 1 || num_ranks > 2 || rank < 0 || rank >= num_ranks)
      return refuse(kInvalidArgument, "no such rank");
    auto communicator = std::make_unique<Communicator>(num_ranks, rank);
    const Result result = communicator->start_connecting(id);
    if (result != kInProgress) return result;
    *comm = reinterpret_cast<Comm>(communicator.get());
    library().live.insert(communicator.get());
    library().all.push_back(std::move(communicator));
    return kInProgress;
  });
}

FAKE_NCCL_EXPORT Result ncclCommGetAsyncError(Comm comm, Result* error) {
  return call_with(__func__, comm, [&](Communicator& communicator) {
    *error = communicator.state();
    return kSuccess;
  });
}

FAKE_NCCL_EXPORT Result ncclCommAbort(Comm comm) {
  return call_with(__func__, comm, [&](Communicator& communicator) {
    communicator.abort();
    library().live.erase(&communicator);
    return kSuccess;
  });
}

FAKE_NCCL_EXPORT Result ncclCommFinalize(Comm comm) {
  return call_with(__func__, comm, [&](Communicator& communicator) -> Result {
    if (const Result result = check_ready(communicator)) return result;
    communicator.start_finalizing();
    return kInProgress;
  });
}

FAKE_NCCL_EXPORT Result ncclCommDestroy(Comm comm) {
  return call_with(__func__, comm, [&](Communicator& communicator) -> Result {
    if (!communicator.done()) return refuse(kInvalidUsage, "the communicator was not finalized");
    communicator.abort();
    library().live.erase(&communicator);
    return kSuccess;
  });
}

FAKE_NCCL_EXPORT Result ncclSend(const void* data, size_t count, int type, int peer, Comm comm, Stream stream) {
  return add_transfer(__func__, {true, const_cast<void*>(data), bytes_of(count, type)}, peer, comm, stream);
}

FAKE_NCCL_EXPORT Result ncclRecv(void* data, size_t count, int type, int peer, Comm comm, Stream stream) {
  return add_transfer(__func__, {false, data, bytes_of(count, type)}, peer, comm, stream);
}

FAKE_NCCL_EXPORT Result ncclGroupStart() {
  return call(__func__, [] {
    ++open_group.depth;
    return kSuccess;
  });
}

FAKE_NCCL_EXPORT Result ncclGroupEnd() {
  return call(__func__, []() -> Result {
    if (open_group.depth == 0) return refuse(kInvalidUsage, "ncclGroupEnd without ncclGroupStart");
    return --open_group.depth > 0 ? kSuccess : close_group();
  });
}

FAKE_NCCL_EXPORT const char* ncclGetErrorString(Result result) {
  switch (result) {
    case kSuccess:
      return "no error";
    case kUnhandledCudaError:
      return "unhandled cuda error";
    case kSystemError:
      return "unhandled system error";
    case kInternalError:
      return "internal error";
    case kInvalidArgument:
      return "invalid argument";
    case kInvalidUsage:
      return "invalid usage";
    case kRemoteError:
      return "remote process exited or there was a network error";
    case kInProgress:
      return "NCCL operation in progress";
  }
  return "unknown result code";
}

FAKE_NCCL_EXPORT const char* ncclGetLastError(Comm) { return last_error(); }

}  // namespace fake_nccl
