#include <string>

#include "bindings/bindings.h"
#include "device/cuda/driver.h"
#include "device/cuda/kernels.h"

namespace pipert::bindings {
namespace {

int cuda_device_count() {
  int count = 0;
  if (cuda::driver_works()) PIPERT_CUDA_TRY(device_get_count(&count));
  return count;
}

int cuda_driver_version() {
  int version = 0;
  PIPERT_CUDA_TRY(driver_get_version(&version));
  return version;
}

void spin(size_t stream, int64_t duration_ns) {
  cuda::spin(cuda::StreamView(reinterpret_cast<cuda::StreamHandle*>(stream)), duration_ns);
}

}  // namespace

void bind_device(pybind11::module_& m) {
  namespace py = pybind11;
  m.def("cuda_kernel_architectures", &cuda::kernel_architectures,
        "For which CUDA architectures this build has kernels, as CMake writes them; empty: none.");
  m.def("cuda_device_count", &cuda_device_count, "Usable CUDA devices; 0 without a driver.");
  m.def("cuda_driver_version", &cuda_driver_version,
        "The CUDA version that the driver is for, as 1000 major + 10 minor. Raises CudaError that says why no device "
        "can be used.");
  m.def("cuda_spin", &spin, py::arg("stream"), py::arg("duration_ns"),
        "Keeps a stream (a cudaStream_t as a number) busy for about so long. Raises CudaError.");
}

}  // namespace pipert::bindings
