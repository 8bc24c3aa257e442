#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/python_interrupt.h"
#include "plan/plan.h"
#include "transport/channel_benchmark.h"
#include "transport/channels.h"
#include "transport/device/announcer.h"

namespace py = pybind11;

namespace pipert::bindings {
namespace {

Topology topology(const Plan& plan, bool for_device) {
  return for_device ? Topology::of(plan, kAnnouncements) : Topology::of(plan);
}

std::shared_ptr<Channels> local(const std::shared_ptr<Plan>& plan, bool for_device) {
  return Channels::local(topology(*plan, for_device));
}

std::shared_ptr<Channels> shm(const std::shared_ptr<Plan>& plan, int32_t rank, const std::string& session,
                              int64_t timeout_ms, bool for_device) {
  const py::gil_scoped_release release;
  return Channels::shm(topology(*plan, for_device), rank, session, timeout_ms, python_interrupt());
}

py::list run_channel_benchmark(const std::string& session, int32_t rank, size_t nbytes, int64_t iterations,
                               int64_t spin_us) {
  std::vector<double> seconds;
  {
    const py::gil_scoped_release release;
    seconds = channel_benchmark(session, rank, nbytes, iterations, spin_us, python_interrupt());
  }
  return py::cast(seconds);
}

}  // namespace

void bind_transport(py::module_& m) {
  py::class_<Channels, std::shared_ptr<Channels>>(
      m, "Channels", "The edges of a plan that this process has an end of. Memory that somebody looks at outlives it.")
      .def_static("local", &local, py::arg("plan"), py::arg("for_device") = false,
                  "All ranks in this process. `for_device`: to be what DeviceChannels announce messages through.")
      .def_static("shm", &shm, py::arg("plan"), py::arg("rank"), py::arg("session"), py::arg("timeout_ms"),
                  py::arg("for_device") = false,
                  "One rank of several on this machine, which meet under the name of the session. Blocks, without the "
                  "GIL, until all are connected and every edge has carried real bytes. Raises TransportError.")
      .def_property_readonly("rank", &Channels::rank, "The rank that this process is; -1 when it is all of them.")
      .def_property_readonly(
          "edges",
          [](const Channels& channels) {
            std::vector<std::pair<int32_t, int32_t>> edges;
            for (const Edge& edge : channels.topology().edges) edges.emplace_back(edge.source, edge.destination);
            return edges;
          },
          "(source, destination) of every edge of the plan, in the order that all ranks have.")
      .def("close", &Channels::close, py::call_guard<py::gil_scoped_release>(), "Says goodbye to the other ranks.");
  m.def("channel_benchmark", &run_channel_benchmark, py::arg("session"), py::arg("rank"), py::arg("nbytes"),
        py::arg("iterations"), py::arg("spin_us"),
        "To be called by two processes, as ranks 0 and 1 of one session: per round trip of messages of nbytes, half of "
        "its seconds. spin_us is how long a wait spins before it sleeps. Runs without the GIL.");
}

}  // namespace pipert::bindings
