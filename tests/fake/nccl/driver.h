// The CUDA driver that the fake NCCL enqueues its work with: the one that PIPERT_LIBCUDA names.
#pragma once

namespace fake_nccl {

struct Driver {
  // Aborts the process when it cannot be opened.
  static const Driver& get();

  int (*launch_host_function)(void* stream, void (*function)(void*), void* argument) = nullptr;
  int (*stream_is_capturing)(void* stream, int* status) = nullptr;
  int (*context_get_device)(int* device) = nullptr;
};

}  // namespace fake_nccl
