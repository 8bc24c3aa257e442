#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include <vector>

#include "bindings/bindings.h"
#include "search/order_clock.h"
#include "search/search.h"

namespace py = pybind11;

namespace pipert::bindings {
namespace {

using search::Order;
using search::Problem;

Problem make_problem(int32_t num_ranks, int32_t num_stages, int32_t num_microbatches, std::vector<int32_t> rank_of_cell,
                     std::vector<double> time, std::vector<double> latency, std::vector<double> occupancy,
                     std::vector<double> act, std::vector<double> act_w, std::vector<double> memory_limit) {
  Problem problem{
      num_ranks,          num_stages,           num_microbatches, std::move(rank_of_cell), std::move(time),
      std::move(latency), std::move(occupancy), std::move(act),   std::move(act_w),        std::move(memory_limit)};
  search::check(problem);
  return problem;
}

py::object order_figures(const Problem& problem, const Order& order) {
  search::OrderClock clock(problem);
  const search::Figures figures = clock.run(order);
  if (!figures.complete) return py::none();
  py::list spans, peaks;
  for (int32_t rank = 0; rank < problem.num_ranks; ++rank) {
    spans.append(order[rank].empty() ? 0.0 : clock.rank_end(rank) - clock.rank_start(rank));
    peaks.append(search::peak_memory(problem, order[rank]));
  }
  py::dict result;
  result["makespan"] = figures.makespan;
  result["rank_spans"] = spans;
  result["peak_activation"] = peaks;
  return result;
}

// The GIL is released, and taken for `watch` only.
std::pair<Order, double> search_order(const Problem& problem, const std::vector<Order>& starts, uint64_t seed,
                                      int64_t rule_trials, int64_t order_trials, double bound, bool by_span,
                                      const std::function<bool(double, double)>& watch) {
  const py::gil_scoped_release release;
  const search::Found found = search::search(problem, starts, {seed, rule_trials, order_trials, bound, by_span},
                                             [&](double best, double spent) {
                                               const py::gil_scoped_acquire acquire;
                                               return watch(best, spent);
                                             });
  return {found.order, found.figure};
}

}  // namespace

void bind_search(py::module_& m) {
  py::class_<Problem>(m, "SearchProblem")
      .def(py::init(&make_problem), py::kw_only(), py::arg("num_ranks"), py::arg("num_stages"),
           py::arg("num_microbatches"), py::arg("rank_of_cell"), py::arg("time"), py::arg("latency"),
           py::arg("occupancy"), py::arg("act"), py::arg("act_w"), py::arg("memory_limit"))
      .def_property_readonly("num_ops", &Problem::num_ops)
      .def_property_readonly("work", &Problem::work)
      .def("figures", &order_figures, py::arg("order"))
      .def("search", &search_order, py::arg("starts"), py::kw_only(), py::arg("seed"), py::arg("rule_trials"),
           py::arg("order_trials"), py::arg("bound"), py::arg("by_span"), py::arg("watch"));
}

}  // namespace pipert::bindings
