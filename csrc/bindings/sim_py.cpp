#include <pybind11/stl.h>

#include <span>
#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "core/error.h"
#include "plan/plan.h"
#include "sim/clock.h"
#include "sim/figures.h"

namespace py = pybind11;

namespace pipert::bindings {
namespace {

using PerStage = const std::vector<double>&;

py::bytes as_bytes(const std::vector<double>& column) {
  return {reinterpret_cast<const char*>(column.data()), column.size() * sizeof(double)};
}

void check_size(const char* name, size_t size, size_t expected) {
  if (size == expected) return;
  throw ConfigError(std::string(name) + " has " + std::to_string(size) + " entries, expected " +
                    std::to_string(expected));
}

std::span<const double> as_column(const char* name, const py::buffer_info& info, int32_t num_ops) {
  if (info.format != py::format_descriptor<double>::format() || info.ndim != 1 || info.strides[0] != sizeof(double)) {
    throw ConfigError(std::string(name) + " must be a contiguous column of doubles");
  }
  check_size(name, info.size, num_ops);
  return {static_cast<const double*>(info.ptr), static_cast<size_t>(info.size)};
}

// (start, end) as bytes of doubles, one per op. The GIL is released while the clock runs.
py::tuple simulate_plan(const Plan& plan, PerStage F, PerStage I, PerStage W, PerStage B, PerStage R, double latency,
                        double occupancy, double host_cores) {
  const auto num_stages = static_cast<size_t>(plan.num_stages);
  for (const auto& [name, values] : {std::pair{"F", &F}, {"I", &I}, {"W", &W}, {"B", &B}, {"R", &R}}) {
    check_size(name, values->size(), num_stages);
  }
  ClockCosts costs{{}, latency, occupancy, host_cores};
  for (size_t stage = 0; stage < num_stages; ++stage) {
    costs.stages.push_back({F[stage], B[stage], I[stage], W[stage], R[stage]});
  }
  Timeline timeline;
  {
    py::gil_scoped_release release;
    timeline = simulate(plan, costs);
  }
  return py::make_tuple(as_bytes(timeline.start), as_bytes(timeline.end));
}

// The GIL is released while the columns are read; their buffers are held meanwhile.
py::dict measure_columns(const Plan& plan, const py::buffer& start, const py::buffer& end, PerStage act,
                         PerStage act_w) {
  const py::buffer_info start_info = start.request(), end_info = end.request();
  const auto start_column = as_column("start", start_info, plan.num_ops());
  const auto end_column = as_column("end", end_info, plan.num_ops());
  check_size("act", act.size(), plan.num_stages);
  check_size("act_w", act_w.size(), plan.num_stages);
  std::vector<StageMemory> memory;
  for (size_t stage = 0; stage < act.size(); ++stage) memory.push_back({act[stage], act_w[stage]});
  Figures figures;
  {
    py::gil_scoped_release release;
    figures = measure(plan, start_column, end_column, memory);
  }
  const auto column = [&](double RankFigures::* field) {
    py::list values;
    for (const RankFigures& rank : figures.ranks) values.append(rank.*field);
    return values;
  };
  py::dict result;
  result["makespan"] = figures.makespan;
  result["rank_spans"] = column(&RankFigures::span);
  result["compute_times"] = column(&RankFigures::compute_time);
  result["peak_activation"] = column(&RankFigures::peak_activation);
  result["exposed_comm"] = column(&RankFigures::exposed_comm);
  return result;
}

}  // namespace

void bind_sim(py::module_& m) {
  m.def("simulate", &simulate_plan, py::arg("plan"), py::kw_only(), py::arg("F"), py::arg("I"), py::arg("W"),
        py::arg("B"), py::arg("R"), py::arg("latency"), py::arg("occupancy"), py::arg("host_cores"),
        "Start and end of every op on the virtual clock, as bytes of doubles; F to R hold one time per stage.");
  m.def("measure", &measure_columns, py::arg("plan"), py::arg("start"), py::arg("end"), py::arg("act"),
        py::arg("act_w"), "The figures of a timeline, per rank; start and end are buffers of doubles, one per op.");
}

}  // namespace pipert::bindings
