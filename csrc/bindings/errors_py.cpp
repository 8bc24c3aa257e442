#include <string_view>

#include "bindings/bindings.h"
#include "core/error.h"

namespace py = pybind11;

namespace pipert::bindings {
namespace {

// Raises pipert.errors.<python_name>(message, rank=, op=, step=).
void raise_python(const Error& error) {
  const ErrorContext& context = error.context();
  py::object type = py::module_::import("pipert.errors").attr(error.python_name());
  py::dict keywords;
  if (context.rank) keywords["rank"] = *context.rank;
  if (!context.op.empty()) keywords["op"] = context.op;
  if (context.step) keywords["step"] = *context.step;
  // The text may quote bytes of a file, or be a peer's, cut anywhere.
  const std::string_view text = error.what();
  const auto message = py::reinterpret_steal<py::str>(
      PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "replace"));
  py::object exception = type(message, **keywords);
  PyErr_SetObject(type.ptr(), exception.ptr());
}

}  // namespace

void bind_errors(py::module_&) {
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const Error& error) {
      raise_python(error);
    }
  });
}

}  // namespace pipert::bindings
