// The part of NCCL's C interface that pipert uses, declared here and found at run time: pipert is built without NCCL.
#pragma once

#include <climits>
#include <cstddef>
#include <string>

namespace pipert::nccl {

enum Result : int {
  kSuccess = 0,
  kUnhandledCudaError = 1,
  kSystemError = 2,
  kInternalError = 3,
  kInvalidArgument = 4,
  kInvalidUsage = 5,
  kRemoteError = 6,
  kInProgress = 7,
};

inline constexpr int kInt8 = 0;  // of ncclDataType_t

struct UniqueId {
  char bytes[128] = {};
};

// ncclConfig_t as NCCL 2.18 has it. Newer versions append to it, and look at `version` before they look there.
struct Config {
  static constexpr int kUndefined = INT_MIN;

  size_t size = sizeof(Config);
  unsigned magic = 0xCAFEBEEF;
  unsigned version = 21800;
  int blocking = kUndefined;
  int cga_cluster_size = kUndefined;
  int min_ctas = kUndefined;
  int max_ctas = kUndefined;
  const char* net_name = nullptr;
  int split_share = kUndefined;
  int padding = 0;
};
static_assert(sizeof(Config) == 48 && offsetof(Config, magic) == 8 && offsetof(Config, blocking) == 16 &&
              offsetof(Config, net_name) == 32 && offsetof(Config, split_share) == 40);

using Comm = struct OpaqueComm*;
using Stream = void*;  // a CUstream

struct Api {
  // The library that PIPERT_NCCL names, or the one that this process has loaded already, as torch does. Stays open.
  // Throws TransportError when there is none, or when it is not an NCCL of 2.18 or newer.
  static const Api& get();

  std::string path;  // as it was asked for
  int version = 0;   // 22809 is 2.28.9

  Result (*get_version)(int* version) = nullptr;
  Result (*get_unique_id)(UniqueId* id) = nullptr;
  Result (*comm_init_rank_config)(Comm* comm, int num_ranks, UniqueId id, int rank, Config* config) = nullptr;
  Result (*comm_get_async_error)(Comm comm, Result* error) = nullptr;
  Result (*comm_abort)(Comm comm) = nullptr;
  Result (*comm_finalize)(Comm comm) = nullptr;
  Result (*comm_destroy)(Comm comm) = nullptr;
  Result (*send)(const void* data, size_t count, int type, int peer, Comm comm, Stream stream) = nullptr;
  Result (*recv)(void* data, size_t count, int type, int peer, Comm comm, Stream stream) = nullptr;
  Result (*group_start)() = nullptr;
  Result (*group_end)() = nullptr;
  const char* (*get_error_string)(Result result) = nullptr;
  const char* (*get_last_error)(Comm comm) = nullptr;
};

// "2.28.9"
std::string version_text(int version);

}  // namespace pipert::nccl
