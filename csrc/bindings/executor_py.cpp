#include <pybind11/stl.h>

#include <memory>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/executor_binding.h"
#include "executor/executor.h"

namespace py = pybind11;

namespace pipert::bindings {
namespace {

// A slot's memory for Python's buffer protocol.
struct SlotMemory {
  SlotView view;
};

class PyExecutor : public ExecutorBinding<Executor> {
 public:
  PyExecutor(const std::shared_ptr<Plan>& plan, const std::shared_ptr<Channels>& channels, std::vector<int32_t> ranks,
             int64_t spin_us, int64_t timeout_ms, const std::vector<std::pair<int64_t, int64_t>>& delays_ns)
      : channels_(channels) {
    ExecutorOptions options{.spin_ns = spin_us * 1000, .timeout_ns = timeout_ms * 1'000'000};
    for (const auto& [latency_ns, occupancy_ns] : delays_ns) {
      options.delays.push_back({.latency_ns = latency_ns, .occupancy_ns = occupancy_ns});
    }
    own(std::make_unique<Executor>(plan, channels, std::move(ranks), std::move(options)));
  }

  void step(int64_t step) {
    refuse_while_running("step");
    executor().step(step, host());
  }

  py::tuple received(int32_t recv_op) {
    const Received received = executor().received(recv_op);
    return py::make_tuple(py::bytes(reinterpret_cast<const char*>(received.header.data()), received.header.size()),
                          py::int_(reinterpret_cast<size_t>(received.data)), py::int_(received.num_bytes));
  }

  py::memoryview slot_memory(int32_t recv_op) { return py::memoryview(py::cast(SlotMemory{executor().slot(recv_op)})); }

  py::bytes trace() {
    refuse_while_running("trace");
    return as_bytes(executor().trace());
  }

 private:
  std::shared_ptr<Channels> channels_;
};

}  // namespace

void bind_executor(py::module_& m) {
  py::class_<SlotMemory>(py::handle(), "SlotMemory", py::buffer_protocol(),
                         "A slot's memory; it stays while this object does.")
      .def_buffer([](SlotMemory& memory) {
        return py::buffer_info(reinterpret_cast<uint8_t*>(memory.view.data),
                               static_cast<py::ssize_t>(memory.view.num_bytes));
      });
  py::class_<PyExecutor>(m, "Executor", "A plan and its resources: made once, stepped many times.",
                         py::custom_type_setup(&make_collectable<PyExecutor>))
      .def(py::init<const std::shared_ptr<Plan>&, const std::shared_ptr<Channels>&, std::vector<int32_t>, int64_t,
                    int64_t, const std::vector<std::pair<int64_t, int64_t>>&>(),
           py::arg("plan"), py::arg("channels"), py::arg("ranks"), py::arg("spin_us"), py::arg("timeout_ms"),
           py::arg("delays_ns") = std::vector<std::pair<int64_t, int64_t>>{},
           "`delays_ns`: per lane of the plan, by what latency and occupancy its messages are held back; empty: none.")
      .def("bind", &PyExecutor::bind, py::arg("handlers"),
           "One handler per compute or collective op of the ranks, in the global order; each is called with its "
           "microbatch "
           "(-1: the op has none).")
      .def("step", &PyExecutor::step, py::arg("step"),
           "Runs one step; returns when all lanes have finished it. Holds the GIL in handlers only, and gives it up "
           "while waiting. A handler's exception comes through unchanged. Raises PeerLost, LaneTimeout, "
           "TransportError. No step can follow a failure.")
      .def("post", &PyExecutor::post, py::arg("send_op"), py::arg("segments"), py::arg("header"),
           "In a handler: what a SEND that follows this op is to send, as (address, nbytes) pairs. Returns how many "
           "sends of that lane have finished since bind: their memory is free.")
      .def("received", &PyExecutor::received, py::arg("recv_op"),
           "In a handler: (header, address, nbytes) of what a RECV received in this step.")
      .def("slot_memory", &PyExecutor::slot_memory, py::arg("recv_op"),
           "A writable view of the part of the RECV's slot that has been used; its address never changes.")
      .def("trace", &PyExecutor::trace,
           "Records of the last step, struct format '<IIqqq': op, lane, ready, start, end (CLOCK_MONOTONIC ns).")
      .def("status", &PyExecutor::status, "Where every lane stands, one line each. From any thread.")
      .def("check", &PyExecutor::check,
           "In a handler that waits by itself: raises what has failed, here or on another rank.")
      .def("abort", &PyExecutor::abort, py::arg("reason"), py::call_guard<py::gil_scoped_release>(),
           "Ends the step that runs, tells the peers, refuses every further step. From any thread.")
      .def("close", &PyExecutor::close, "Ends the lanes' threads and forgets the handlers.");
}

}  // namespace pipert::bindings
