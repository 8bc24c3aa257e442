#include "bindings/bindings.h"
#include "trace/nvtx.h"
#include "trace/nvtx_benchmark.h"

namespace py = pybind11;

namespace pipert::bindings {
namespace {

py::dict run_benchmark(int64_t iterations) {
  NvtxCost cost;
  {
    const py::gil_scoped_release release;
    cost = nvtx_benchmark(iterations);
  }
  py::dict result;
  result["loop"] = cost.loop_ns;
  result["off"] = cost.off_ns;
  result["on"] = cost.on_ns;
  return result;
}

}  // namespace

void bind_nvtx(py::module_& m) {
  m.def("built_with_nvtx", &built_with_nvtx, "Whether this build knows NVTX.");
  m.def(
      "nvtx_wanted", [] { return NvtxDomain::wanted() != nullptr; },
      "Whether an executor that is made now shows its ops to NVTX tools: PIPERT_NVTX=1 or 0 decides, else whether a "
      "tool is attached. Raises ConfigError for another value, and for 1 in a build without NVTX.");
  m.def("nvtx_benchmark", &run_benchmark, py::arg("iterations"),
        "Nanoseconds of a turn of a loop, medians: 'loop', an empty one; 'off', with a range that is not shown; 'on', "
        "with one that is shown to the tool that is attached, if any. Runs without the GIL. Raises ConfigError in a "
        "build without NVTX.");
}

}  // namespace pipert::bindings
