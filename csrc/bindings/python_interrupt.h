// Ctrl-C while the core blocks without the GIL.
#pragma once

#include <pybind11/pybind11.h>

#include "transport/mesh.h"

namespace pipert::bindings {

// Takes the GIL and runs Python's signal handlers; throws what they raise.
inline Interrupt python_interrupt() {
  return [] {
    const pybind11::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw pybind11::error_already_set();
  };
}

}  // namespace pipert::bindings
