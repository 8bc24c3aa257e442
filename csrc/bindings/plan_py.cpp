#include <memory>

#include "bindings/bindings.h"
#include "plan/plan.h"

namespace py = pybind11;

namespace pipert::bindings {
namespace {

std::shared_ptr<Plan> load_plan(std::string_view json_text) {
  auto plan = std::make_shared<Plan>(parse_plan(json_text));
  verify(*plan);
  return plan;
}

}  // namespace

void bind_plan(py::module_& m) {
  // The GIL is released while the text is parsed and verified.
  py::class_<Plan, std::shared_ptr<Plan>>(m, "Plan", "A verified plan; immutable.")
      .def(py::init(&load_plan), py::arg("json_text"), py::call_guard<py::gil_scoped_release>(),
           "Parses and verifies the JSON of a plan. Raises PlanError.")
      .def_property_readonly("num_ops", &Plan::num_ops)
      .def_readonly("num_ranks", &Plan::num_ranks)
      .def_readonly("fingerprint", &Plan::fingerprint, "64 bits; equal on ranks that hold the same plan.");
}

}  // namespace pipert::bindings
