#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "core/error.h"
#include "executor/executor.h"

namespace py = pybind11;

namespace pipert::bindings {
namespace {

// "ValueError: boom", of the Python exception that is set as `error`.
std::string in_short(const py::error_already_set& error) {
  std::string text = py::str(error.type().attr("__name__"));
  try {
    const std::string value = py::str(error.value());
    if (!value.empty()) text += ": " + value;
  } catch (const py::error_already_set&) {  // an exception that cannot be shown
  }
  return text;
}

// Runs the handlers on the thread that holds the GIL, and gives it up for waits.
class PythonHost final : public ComputeHost {
 public:
  void run(size_t index) override {
    // One spare place in front lets a bound method put its self there without copying the arguments.
    PyObject* arguments[2] = {nullptr, microbatches_[index].ptr()};
    PyObject* result =
        PyObject_Vectorcall(handlers_[index].ptr(), arguments + 1, 1 | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr);
    if (result == nullptr) throw_python();
    Py_DECREF(result);
  }
  std::string what_was_thrown() override { return std::exchange(thrown_, {}); }
  void pause() override { thread_ = PyEval_SaveThread(); }
  void resume() override { PyEval_RestoreThread(thread_); }
  void check_signals() override {
    if (PyErr_CheckSignals() != 0) throw_python();
  }

  void bind(std::vector<py::object> handlers, std::vector<py::object> microbatches) {
    handlers_ = std::move(handlers);
    microbatches_ = std::move(microbatches);
  }
  bool bound() const noexcept { return !microbatches_.empty(); }
  const std::vector<py::object>& handlers() const noexcept { return handlers_; }
  // Moved out first: what a handler's end calls back may come here again.
  void clear() { const auto handlers = std::exchange(handlers_, {}), microbatches = std::exchange(microbatches_, {}); }

 private:
  [[noreturn]] void throw_python() {
    py::error_already_set error;
    thrown_ = in_short(error);
    throw error;
  }

  std::vector<py::object> handlers_;
  std::vector<py::object> microbatches_;
  std::string thrown_;
  PyThreadState* thread_ = nullptr;
};

// A slot's memory for Python's buffer protocol.
struct SlotMemory {
  SlotView view;
};

class PyExecutor {
 public:
  PyExecutor(const std::shared_ptr<Plan>& plan, const std::shared_ptr<Channels>& channels, std::vector<int32_t> ranks,
             int64_t spin_us, int64_t timeout_ms, const std::vector<std::pair<int64_t, int64_t>>& delays_ns)
      : channels_(channels) {
    ExecutorOptions options{.spin_ns = spin_us * 1000, .timeout_ns = timeout_ms * 1'000'000};
    for (const auto& [latency_ns, occupancy_ns] : delays_ns) {
      options.delays.push_back({.latency_ns = latency_ns, .occupancy_ns = occupancy_ns});
    }
    executor_ = std::make_unique<Executor>(plan, channels, std::move(ranks), std::move(options));
  }

  ~PyExecutor() { close_executor(); }

  void bind(const py::list& handlers) {
    refuse_while_running("bind");
    const std::span<const int32_t> ops = executor().compute_ops();
    if (handlers.size() != ops.size()) {
      throw ConfigError("bind needs a handler for each of the " + std::to_string(ops.size()) +
                        " compute and collective ops, got " + std::to_string(handlers.size()));
    }
    std::vector<py::object> callables;
    std::vector<py::object> microbatches;
    for (size_t index = 0; index < ops.size(); ++index) {
      py::object handler = handlers[index];
      if (PyCallable_Check(handler.ptr()) == 0) {
        throw ConfigError("the handler of " + executor().plan().text(ops[index]) + " cannot be called");
      }
      callables.push_back(std::move(handler));
      microbatches.push_back(py::int_(executor().plan().ops[ops[index]].microbatch));
    }
    executor().restart_counts();
    host_.clear();
    host_.bind(std::move(callables), std::move(microbatches));
  }

  void step(int64_t step) {
    Executor& executor = this->executor();
    refuse_while_running("step");
    if (!host_.bound() && !executor.compute_ops().empty()) throw ConfigError("step was called before bind");
    executor.step(step, host_);
  }

  uint64_t post(int32_t send_op, const py::object& segments, const py::bytes& header) {
    const py::object sequence =
        py::reinterpret_steal<py::object>(PySequence_Fast(segments.ptr(), "segments must be a list"));
    if (!sequence) throw py::error_already_set();
    const Py_ssize_t size = PySequence_Fast_GET_SIZE(sequence.ptr());
    segments_.resize(static_cast<size_t>(size));
    for (Py_ssize_t index = 0; index < size; ++index) {
      PyObject* pair = PySequence_Fast_GET_ITEM(sequence.ptr(), index);
      if (!PyTuple_Check(pair) || PyTuple_GET_SIZE(pair) != 2) {
        throw py::type_error("a segment must be a tuple (address, nbytes)");
      }
      const size_t address = PyLong_AsSize_t(PyTuple_GET_ITEM(pair, 0));
      const size_t num_bytes = PyLong_AsSize_t(PyTuple_GET_ITEM(pair, 1));
      if (PyErr_Occurred() != nullptr) throw py::error_already_set();
      segments_[static_cast<size_t>(index)] = {.data = reinterpret_cast<const void*>(address), .num_bytes = num_bytes};
    }
    const std::string_view bytes = header;
    return executor().post(send_op, segments_, std::as_bytes(std::span(bytes)));
  }

  py::tuple received(int32_t recv_op) {
    const Received received = executor().received(recv_op);
    return py::make_tuple(py::bytes(reinterpret_cast<const char*>(received.header.data()), received.header.size()),
                          py::int_(reinterpret_cast<size_t>(received.data)), py::int_(received.num_bytes));
  }

  py::memoryview slot_memory(int32_t recv_op) { return py::memoryview(py::cast(SlotMemory{executor().slot(recv_op)})); }

  py::bytes trace() {
    refuse_while_running("trace");
    const std::span<const TraceRecord> records = executor().trace();
    return {reinterpret_cast<const char*>(records.data()), records.size_bytes()};
  }

  std::string status() { return executor_ ? executor_->status() : "closed\n"; }
  void abort(const std::string& reason) {
    if (executor_) executor_->abort(reason);
  }

  void close() {
    if (executor_ && executor_->running()) {
      executor_->abort("close was called while a step runs");
      throw ConfigError("close was called while a step runs; the step was aborted");
    }
    host_.clear();
    close_executor();
  }

  // For Python's garbage collector: handlers usually refer back to whoever holds the executor.
  int visit(visitproc visit_object, void* argument) const {
    for (const py::object& handler : host_.handlers()) {
      if (const int result = visit_object(handler.ptr(), argument); result != 0) return result;
    }
    return 0;
  }
  void clear() { host_.clear(); }

 private:
  Executor& executor() {
    if (!executor_) throw ConfigError("the executor is closed");
    return *executor_;
  }
  void refuse_while_running(const char* what) {
    if (executor_ && executor_->running()) throw ConfigError(std::string(what) + " was called while a step runs");
  }
  // Lane threads never take the GIL, so they can be joined with it; without it other Python threads go on meanwhile.
  void close_executor() {
    const py::gil_scoped_release release;
    executor_.reset();
  }

  std::shared_ptr<Channels> channels_;
  PythonHost host_;
  std::unique_ptr<Executor> executor_;
  std::vector<Segment> segments_;
};

void make_collectable(PyHeapTypeObject* heap_type) {
  PyTypeObject& type = heap_type->ht_type;
  type.tp_flags |= Py_TPFLAGS_HAVE_GC;
  type.tp_traverse = [](PyObject* self, visitproc visit, void* arg) -> int {
    Py_VISIT(Py_TYPE(self));
    if (!py::detail::is_holder_constructed(self)) return 0;
    return py::cast<PyExecutor&>(py::handle(self)).visit(visit, arg);
  };
  type.tp_clear = [](PyObject* self) -> int {
    if (py::detail::is_holder_constructed(self)) py::cast<PyExecutor&>(py::handle(self)).clear();
    return 0;
  };
}

}  // namespace

void bind_executor(py::module_& m) {
  py::class_<SlotMemory>(py::handle(), "SlotMemory", py::buffer_protocol(),
                         "A slot's memory; it stays while this object does.")
      .def_buffer([](SlotMemory& memory) {
        return py::buffer_info(reinterpret_cast<uint8_t*>(memory.view.data),
                               static_cast<py::ssize_t>(memory.view.num_bytes));
      });
  py::class_<PyExecutor>(m, "Executor", "A plan and its resources: made once, stepped many times.",
                         py::custom_type_setup(&make_collectable))
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
      .def("abort", &PyExecutor::abort, py::arg("reason"), py::call_guard<py::gil_scoped_release>(),
           "Ends the step that runs, tells the peers, refuses every further step. From any thread.")
      .def("close", &PyExecutor::close, "Ends the lanes' threads and forgets the handlers.");
}

}  // namespace pipert::bindings
