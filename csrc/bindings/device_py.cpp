#include "bindings/bindings.h"
#include "device/cuda.h"

namespace pipert::bindings {

void bind_device(pybind11::module_& m) {
  m.def("built_with_cuda", &built_with_cuda, "Whether this build holds the CUDA backend.");
  m.def("cuda_device_count", &cuda_device_count, "Usable CUDA devices; 0 without a driver.");
}

}  // namespace pipert::bindings
