#include <pybind11/stl.h>

#include <map>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "core/error.h"
#include "plan/plan.h"
#include "sim/clock.h"
#include "sim/explain.h"
#include "sim/figures.h"
#include "sim/noise.h"

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

using Link = std::tuple<int32_t, int32_t, double, double>;  // source, destination, latency, occupancy

ClockCosts make_costs(const std::map<std::string, std::vector<double>>& times, std::vector<double> scale,
                      std::vector<double> rank_speed, double overlap, double latency, double occupancy,
                      const std::vector<Link>& links, double host_cores) {
  ClockCosts costs{.times = {},
                   .scale = std::move(scale),
                   .rank_speed = std::move(rank_speed),
                   .overlap = overlap,
                   .edge = {latency, occupancy},
                   .links = {},
                   .host_cores = host_cores,
                   .jitter = {}};
  for (const auto& [text, column] : times) {
    const auto kind = find_op_kind(text);
    if (!kind) throw ConfigError("no op kind has the text " + text);
    costs.times[static_cast<size_t>(*kind)] = column;
  }
  for (const auto& [source, destination, link_latency, link_occupancy] : links) {
    costs.links.push_back({source, destination, {link_latency, link_occupancy}});
  }
  return costs;
}

// (start, end) as bytes of doubles, one per op. The GIL is released while the clock runs.
py::tuple simulate_plan(const Plan& plan, const ClockCosts& costs) {
  Timeline timeline;
  {
    py::gil_scoped_release release;
    timeline = simulate(plan, costs);
  }
  return py::make_tuple(as_bytes(timeline.start), as_bytes(timeline.end));
}

// The GIL is released while the columns are read; their buffers are held meanwhile.
py::dict measure_columns(const Plan& plan, const py::buffer& start, const py::buffer& end, PerStage act, PerStage act_w,
                         PerStage act_kept, double act_s) {
  const py::buffer_info start_info = start.request(), end_info = end.request();
  const auto start_column = as_column("start", start_info, plan.num_ops());
  const auto end_column = as_column("end", end_info, plan.num_ops());
  check_size("act", act.size(), plan.num_stages);
  check_size("act_w", act_w.size(), plan.num_stages);
  check_size("act_kept", act_kept.size(), plan.num_stages);
  std::vector<StageMemory> memory;
  for (size_t stage = 0; stage < act.size(); ++stage) {
    memory.push_back({act[stage], act_w[stage], act_kept[stage]});
  }
  Figures figures;
  {
    py::gil_scoped_release release;
    figures = measure(plan, start_column, end_column, {memory, act_s});
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

// (ranks, critical path, slack): per rank its idle times by name; the path as (op, waited); slack as bytes of doubles.
py::tuple explain_columns(const Plan& plan, const py::buffer& start, const py::buffer& end) {
  const py::buffer_info start_info = start.request(), end_info = end.request();
  const auto start_column = as_column("start", start_info, plan.num_ops());
  const auto end_column = as_column("end", end_info, plan.num_ops());
  Explanation explanation;
  {
    py::gil_scoped_release release;
    explanation = explain(plan, start_column, end_column);
  }
  py::list ranks, path;
  for (const auto& [warm_up, dependency, drain, communication, overhead] : explanation.ranks) {
    ranks.append(py::dict(py::arg("warm_up") = warm_up, py::arg("dependency") = dependency,
                          py::arg("communication") = communication, py::arg("overhead") = overhead,
                          py::arg("drain") = drain));
  }
  for (const auto& [op, waited] : explanation.critical_path) path.append(py::make_tuple(op, waited));
  return py::make_tuple(ranks, path, as_bytes(explanation.slack));
}

// (makespan, longest rank span, largest compute time) of each step. The GIL is released meanwhile.
std::vector<std::tuple<double, double, double>> noisy_steps(const Plan& plan, const ClockCosts& costs, double op_cv,
                                                            double straggler, uint64_t seed, uint64_t first_step,
                                                            size_t num_steps) {
  const py::gil_scoped_release release;
  std::vector<std::tuple<double, double, double>> steps;
  for (const NoisyStep& step : simulate_noisy(plan, costs, {op_cv, straggler}, seed, first_step, num_steps)) {
    steps.emplace_back(step.makespan, step.longest_rank_span, step.largest_compute_time);
  }
  return steps;
}

}  // namespace

void bind_sim(py::module_& m) {
  py::class_<ClockCosts>(m, "ClockCosts", "What ops cost, as small tables.")
      .def(py::init(&make_costs), py::kw_only(), py::arg("times"), py::arg("scale"), py::arg("rank_speed"),
           py::arg("overlap"), py::arg("latency"), py::arg("occupancy"), py::arg("links"), py::arg("host_cores"),
           "times: op kind's text to one time per stage; scale: per (stage, microbatch) or empty; rank_speed: per rank "
           "or empty; links: (source, destination, latency, occupancy) of edges that are not like the others.");
  m.def("simulate", &simulate_plan, py::arg("plan"), py::arg("costs"),
        "Start and end of every op on the virtual clock, as bytes of doubles.");
  m.def("simulate_noisy", &noisy_steps, py::arg("plan"), py::arg("costs"), py::kw_only(), py::arg("op_cv"),
        py::arg("straggler"), py::arg("seed"), py::arg("first_step"), py::arg("num_steps"),
        "Steps with log-normal op times: of each its makespan, longest rank span and largest compute time of a rank.");
  m.def(
      "explain", &explain_columns, py::arg("plan"), py::arg("start"), py::arg("end"),
      "Idle times per rank, the critical path as (op, waited before), and the slack of every op as bytes of doubles.");
  m.def("measure", &measure_columns, py::arg("plan"), py::arg("start"), py::arg("end"), py::arg("act"),
        py::arg("act_w"), py::arg("act_kept"), py::arg("act_s"),
        "The figures of a timeline, per rank; start and end are buffers of doubles, one per op; act_s is what a rank "
        "holds "
        "from S to T.");
}

}  // namespace pipert::bindings
