#include "device/cuda/memory.h"

namespace pipert::cuda {

Context* use_context(int device) {
  Context* context = nullptr;
  PIPERT_CUDA_TRY(ctx_get_current(&context));
  if (context != nullptr) return context;
  Device ordinal = 0;
  PIPERT_CUDA_TRY(device_get(&ordinal, device));
  PIPERT_CUDA_TRY(primary_ctx_retain(&context, ordinal));  // for as long as the process lives, as the CUDA runtime does
  PIPERT_CUDA_TRY(ctx_set_current(context));
  return context;
}

}  // namespace pipert::cuda
