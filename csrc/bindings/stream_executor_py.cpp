#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/executor_binding.h"
#include "bindings/python_interrupt.h"
#include "executor/stream_executor.h"
#include "transport/nccl/nccl_communicator.h"

namespace py = pybind11;

namespace pipert::bindings {
namespace {

cuda::StreamView stream_of(size_t handle) { return cuda::StreamView(reinterpret_cast<cuda::StreamHandle*>(handle)); }

DeviceTransport transport_of(const std::string& name) {
  if (name == "local") return DeviceTransport::kLocal;
  if (name == "ipc") return DeviceTransport::kIpc;
  if (name == "nccl") return DeviceTransport::kNccl;
  throw ConfigError("there is no transport '" + name + "' through device memory; there is local, ipc, nccl");
}

std::shared_ptr<DeviceChannels> connect(const std::shared_ptr<Channels>& host, const std::string& transport, int device,
                                        int64_t timeout_ms, const std::vector<py::bytes>& nccl_ids) {
  std::vector<nccl::UniqueId> ids(nccl_ids.size());
  for (size_t edge = 0; edge < ids.size(); ++edge) {
    const std::string_view bytes = nccl_ids[edge];
    if (bytes.size() != sizeof(nccl::UniqueId)) throw ConfigError("an NCCL id has another size");
    std::memcpy(ids[edge].bytes, bytes.data(), bytes.size());
  }
  const py::gil_scoped_release release;
  return std::make_shared<DeviceChannels>(host, transport_of(transport), device, timeout_ms, python_interrupt(), ids);
}

py::bytes new_nccl_id() {
  const nccl::UniqueId id = make_nccl_unique_id();
  return {id.bytes, sizeof id.bytes};
}

class PyStreamExecutor : public ExecutorBinding<StreamExecutor> {
 public:
  PyStreamExecutor(const std::shared_ptr<Plan>& plan, const std::shared_ptr<DeviceChannels>& channels,
                   std::vector<int32_t> ranks, const py::function& allocate, int64_t timeout_ms, bool trace)
      : channels_(channels), allocate_(allocate) {
    const auto call = [this](int32_t slot, size_t num_bytes) {  // from within step, which holds the GIL
      return allocate_(slot, num_bytes).template cast<cuda::Address>();
    };
    own(std::make_unique<StreamExecutor>(plan, channels, std::move(ranks), call,
                                         StreamExecutorOptions{.timeout_ns = timeout_ms * 1'000'000, .trace = trace}));
  }

  void step(int64_t step, size_t stream) {
    refuse_while_running("step");
    executor().step(step, host(), stream_of(stream));
  }
  void run_as(size_t graph) { executor().run_as(reinterpret_cast<cuda::GraphHandle*>(graph)); }
  void launched(int64_t step, size_t stream) { executor().launched(step, stream_of(stream)); }
  void wait() { executor().wait(host()); }

  py::tuple received(int32_t recv_op) {
    const DeviceReceived received = executor().received(recv_op);
    return py::make_tuple(py::bytes(reinterpret_cast<const char*>(received.header.data()), received.header.size()),
                          py::int_(received.address), py::int_(received.num_bytes));
  }

  py::bytes trace() {
    refuse_while_running("trace");
    std::span<const TraceRecord> records;
    StreamExecutor& executor = this->executor();
    {
      const py::gil_scoped_release release;
      records = executor.trace();
    }
    return as_bytes(records);
  }
  int64_t clock_uncertainty_ns() { return executor().clock_uncertainty_ns(); }

  int visit(visitproc visit_object, void* argument) const {
    if (const int result = ExecutorBinding::visit(visit_object, argument); result != 0) return result;
    return allocate_ ? visit_object(allocate_.ptr(), argument) : 0;
  }
  void clear() {
    ExecutorBinding::clear();
    const py::object allocate = std::exchange(allocate_, {});
  }

 private:
  std::shared_ptr<DeviceChannels> channels_;
  py::object allocate_;
};

}  // namespace

void bind_stream_executor(py::module_& m) {
  py::class_<DeviceChannels, std::shared_ptr<DeviceChannels>>(
      m, "DeviceChannels", "The edges of a plan, where messages lie in device memory.")
      .def(py::init(&connect), py::arg("host"), py::arg("transport"), py::arg("device"), py::arg("timeout_ms"),
           py::arg("nccl_ids") = std::vector<py::bytes>{},
           "`host`: channels of the same ranks, made with for_device=True. `transport`: 'local' (all ranks in this "
           "process), 'ipc' (processes of one machine) or 'nccl' (with an id for each edge of `host`, made at its "
           "source, if the ranks are processes). Blocks, without the GIL, until every edge between processes has "
           "carried bytes. Raises CudaError, TransportError, PeerLost.");
  m.def("nccl_id", &new_nccl_id, "What the two ends of an edge connect with over NCCL. Raises TransportError.");
  py::class_<PyStreamExecutor>(m, "StreamExecutor",
                               "A plan whose lanes are CUDA streams: made once, stepped many times.",
                               py::custom_type_setup(&make_collectable<PyStreamExecutor>))
      .def(py::init<const std::shared_ptr<Plan>&, const std::shared_ptr<DeviceChannels>&, std::vector<int32_t>,
                    const py::function&, int64_t, bool>(),
           py::arg("plan"), py::arg("channels"), py::arg("ranks"), py::arg("allocate"), py::arg("timeout_ms"),
           py::arg("trace"),
           "`allocate(slot, nbytes)` gives a slot of the plan device memory, of at least so many bytes, and returns "
           "its address; it is called within step. `trace`: record when every op begins and ends.")
      .def("bind", &PyStreamExecutor::bind, py::arg("handlers"),
           "One handler per compute or collective op of the ranks, in the global order; each is called with its "
           "microbatch (-1: the op has none) and enqueues on the stream that step was given.")
      .def("step", &PyStreamExecutor::step, py::arg("step"), py::arg("stream"),
           "Enqueues one step behind what is on `stream` (a cudaStream_t as a number), which then waits for all of "
           "it. Holds the GIL, except in waits for other ranks' hosts. A handler's exception comes through unchanged. "
           "Raises PeerLost, LaneTimeout, TransportError, CudaError. No step can follow a failure.")
      .def("run_as", &PyStreamExecutor::run_as, py::arg("graph"),
           "In a handler: launches the graph (a cudaGraph_t as a number) in which it has captured its op. After a step "
           "in which every handler did so, steps launch those graphs instead, and send what that step sent, from where "
           "it lay.")
      .def("launched", &PyStreamExecutor::launched, py::arg("step"), py::arg("stream"),
           "Says that a captured step was launched on `stream`, to be watched and traced.")
      .def("wait", &PyStreamExecutor::wait,
           "Returns, having given up the GIL, when the device is done with the last step. Raises what has failed, on "
           "the device or on another rank: what was computed is to be trusted if this does not raise.")
      .def("post", &PyStreamExecutor::post, py::arg("send_op"), py::arg("segments"), py::arg("header"),
           "In a handler: what a SEND that follows this op is to send, as (address, nbytes) pairs. Returns how many "
           "sends of that lane, since bind, have ended before whatever is enqueued from now on: their memory is free.")
      .def("received", &PyStreamExecutor::received, py::arg("recv_op"),
           "In a handler: (header, address, nbytes) of what a RECV receives in this step.")
      .def("trace", &PyStreamExecutor::trace,
           "Records of the last step, as those of Executor; waits for the device. Empty without trace.")
      .def_property_readonly("clock_uncertainty_ns", &PyStreamExecutor::clock_uncertainty_ns,
                             "How far off the last trace's times may be from the host's clock.")
      .def("status", &PyStreamExecutor::status, "Where every lane stands, one line each. From any thread.")
      .def("check", &PyStreamExecutor::check,
           "In a handler that waits by itself: raises what has failed, here or on another rank.")
      .def("abort", &PyStreamExecutor::abort, py::arg("reason"), py::call_guard<py::gil_scoped_release>(),
           "Ends the step that runs, tells the peers, refuses every further step. From any thread.")
      .def("close", &PyStreamExecutor::close, "Ends the lanes and forgets the handlers.");
}

}  // namespace pipert::bindings
