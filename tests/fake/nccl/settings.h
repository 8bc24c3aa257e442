// What the environment asks of the fake NCCL. Read once, by the first call of a process.
#pragma once

#include <string_view>

#include "transport/nccl/nccl_api.h"

namespace fake_nccl {

using pipert::nccl::Result;

struct Settings {
  int version = 22809;     // FAKE_NCCL_VERSION
  bool serial = false;     // FAKE_NCCL_SERIAL=1: one operation at a time, over all communicators of a process
  bool duplicate = false;  // FAKE_NCCL_DUPLICATE=1: refuse two ranks on one GPU where that version would
  int num_polls = 2;       // FAKE_NCCL_IN_PROGRESS: how often what is under way is said to be so
  std::string_view
      fail_name;  // FAKE_NCCL_FAIL=name:n[:code], n from 1; the name "async": the n-th group, on its stream
  int fail_call = 0;
  Result fail_code = pipert::nccl::kInternalError;
};

const Settings& settings();

// The error that this call of `function` is to return, kSuccess for none. Counts the calls.
Result next_fault(std::string_view function) noexcept;

}  // namespace fake_nccl
