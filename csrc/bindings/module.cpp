#include "bindings/bindings.h"

PYBIND11_MODULE(_core, m) {
  using namespace pipert::bindings;
  m.doc() = "The native core of pipert.";
  m.attr("__version__") = PIPERT_VERSION;
  bind_errors(m);
  bind_device(m);
  bind_cuda_benchmark(m);
  bind_nvtx(m);
  bind_plan(m);
  bind_transport(m);
  bind_executor(m);
  bind_stream_executor(m);
  bind_sim(m);
  bind_search(m);
}
