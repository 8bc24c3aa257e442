// What is known of the CUDA devices of this machine; host-only builds answer "none".
#pragma once

namespace pipert {

// Whether this build holds the CUDA backend.
bool built_with_cuda() noexcept;

// The number of usable CUDA devices; 0 without a driver, without a device, or in a host-only build.
int cuda_device_count() noexcept;

}  // namespace pipert
