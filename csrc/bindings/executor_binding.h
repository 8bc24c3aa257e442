// What the bindings of the two executors share: handlers in, messages out.
#pragma once

#include <pybind11/stl.h>

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "core/error.h"
#include "executor/compute_host.h"
#include "plan/plan.h"
#include "trace/record.h"
#include "transport/channel.h"

namespace pipert::bindings {

// "ValueError: boom", of the Python exception that is set as `error`.
std::string in_short(const pybind11::error_already_set& error);

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

  // A handler for each of `ops`. Throws ConfigError.
  void bind(const pybind11::list& handlers, std::span<const int32_t> ops, const Plan& plan);
  bool bound() const noexcept { return !microbatches_.empty(); }
  const std::vector<pybind11::object>& handlers() const noexcept { return handlers_; }
  // Moved out first: what a handler's end calls back may come here again.
  void clear() { const auto handlers = std::exchange(handlers_, {}), microbatches = std::exchange(microbatches_, {}); }

 private:
  [[noreturn]] void throw_python();

  std::vector<pybind11::object> handlers_;
  std::vector<pybind11::object> microbatches_;
  std::string thrown_;
  PyThreadState* thread_ = nullptr;
};

// [(address, nbytes), ...] as segments.
void read_segments(const pybind11::object& pairs, std::vector<Segment>& segments);

template <typename Executor>
class ExecutorBinding {
 public:
  ExecutorBinding() = default;
  ~ExecutorBinding() { close_executor(); }

  void bind(const pybind11::list& handlers) {
    refuse_while_running("bind");
    host_.bind(handlers, executor().compute_ops(), executor().plan());
    executor().restart_counts();
  }

  uint64_t post(int32_t send_op, const pybind11::object& segments, const pybind11::bytes& header) {
    read_segments(segments, segments_);
    const std::string_view bytes = header;
    return executor().post(send_op, segments_, std::as_bytes(std::span(bytes)));
  }

  void check() { executor().check(); }
  std::string status() const { return executor_ ? executor_->status() : "closed\n"; }
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
    for (const pybind11::object& handler : host_.handlers()) {
      if (const int result = visit_object(handler.ptr(), argument); result != 0) return result;
    }
    return 0;
  }
  void clear() { host_.clear(); }

 protected:
  void own(std::unique_ptr<Executor> executor) { executor_ = std::move(executor); }
  Executor& executor() {
    if (!executor_) throw ConfigError("the executor is closed");
    return *executor_;
  }
  PythonHost& host() {
    if (!host_.bound() && !executor().compute_ops().empty()) throw ConfigError("step was called before bind");
    return host_;
  }
  void refuse_while_running(const char* what) {
    if (executor_ && executor_->running()) throw ConfigError(std::string(what) + " was called while a step runs");
  }
  static pybind11::bytes as_bytes(std::span<const TraceRecord> records) {
    return {reinterpret_cast<const char*>(records.data()), records.size_bytes()};
  }

 private:
  // The executor's threads never take the GIL, so they can be joined with it; without it other Python threads go on
  // meanwhile.
  void close_executor() {
    const pybind11::gil_scoped_release release;
    executor_.reset();
  }

  PythonHost host_;
  std::unique_ptr<Executor> executor_;
  std::vector<Segment> segments_;
};

// Lets Python's garbage collector look into a binding.
template <typename Binding>
void make_collectable(PyHeapTypeObject* heap_type) {
  PyTypeObject& type = heap_type->ht_type;
  type.tp_flags |= Py_TPFLAGS_HAVE_GC;
  type.tp_traverse = [](PyObject* self, visitproc visit, void* arg) -> int {
    Py_VISIT(Py_TYPE(self));
    if (!pybind11::detail::is_holder_constructed(self)) return 0;
    return pybind11::cast<Binding&>(pybind11::handle(self)).visit(visit, arg);
  };
  type.tp_clear = [](PyObject* self) -> int {
    if (pybind11::detail::is_holder_constructed(self)) pybind11::cast<Binding&>(pybind11::handle(self)).clear();
    return 0;
  };
}

}  // namespace pipert::bindings
