#include "bindings/executor_binding.h"

namespace py = pybind11;

namespace pipert::bindings {

std::string in_short(const py::error_already_set& error) {
  std::string text = py::str(error.type().attr("__name__"));
  try {
    const std::string value = py::str(error.value());
    if (!value.empty()) text += ": " + value;
  } catch (const py::error_already_set&) {  // an exception that cannot be shown
  }
  return text;
}

void PythonHost::throw_python() {
  py::error_already_set error;
  thrown_ = in_short(error);
  throw error;
}

void PythonHost::bind(const py::list& handlers, std::span<const int32_t> ops, const Plan& plan) {
  if (handlers.size() != ops.size()) {
    throw ConfigError("bind needs a handler for each of the " + std::to_string(ops.size()) +
                      " compute and collective ops, got " + std::to_string(handlers.size()));
  }
  std::vector<py::object> callables;
  std::vector<py::object> microbatches;
  for (size_t index = 0; index < ops.size(); ++index) {
    py::object handler = handlers[index];
    if (PyCallable_Check(handler.ptr()) == 0) {
      throw ConfigError("the handler of " + plan.text(ops[index]) + " cannot be called");
    }
    callables.push_back(std::move(handler));
    microbatches.push_back(py::int_(plan.ops[ops[index]].microbatch));
  }
  clear();
  handlers_ = std::move(callables);
  microbatches_ = std::move(microbatches);
}

void read_segments(const py::object& pairs, std::vector<Segment>& segments) {
  const py::object sequence =
      py::reinterpret_steal<py::object>(PySequence_Fast(pairs.ptr(), "segments must be a list"));
  if (!sequence) throw py::error_already_set();
  const Py_ssize_t size = PySequence_Fast_GET_SIZE(sequence.ptr());
  segments.resize(static_cast<size_t>(size));
  for (Py_ssize_t index = 0; index < size; ++index) {
    PyObject* pair = PySequence_Fast_GET_ITEM(sequence.ptr(), index);
    if (!PyTuple_Check(pair) || PyTuple_GET_SIZE(pair) != 2) {
      throw py::type_error("a segment must be a tuple (address, nbytes)");
    }
    const size_t address = PyLong_AsSize_t(PyTuple_GET_ITEM(pair, 0));
    const size_t num_bytes = PyLong_AsSize_t(PyTuple_GET_ITEM(pair, 1));
    if (PyErr_Occurred() != nullptr) throw py::error_already_set();
    segments[static_cast<size_t>(index)] = {.data = reinterpret_cast<const void*>(address), .num_bytes = num_bytes};
  }
}

}  // namespace pipert::bindings
