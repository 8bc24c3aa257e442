// One function per public header of the core; each adds its part to the Python module.
#pragma once

#include <pybind11/pybind11.h>

namespace pipert::bindings {

void bind_errors(pybind11::module_& m);
void bind_device(pybind11::module_& m);
void bind_cuda_benchmark(pybind11::module_& m);
void bind_nvtx(pybind11::module_& m);
void bind_plan(pybind11::module_& m);
void bind_transport(pybind11::module_& m);
void bind_executor(pybind11::module_& m);
void bind_stream_executor(pybind11::module_& m);
void bind_sim(pybind11::module_& m);
void bind_search(pybind11::module_& m);

}  // namespace pipert::bindings
