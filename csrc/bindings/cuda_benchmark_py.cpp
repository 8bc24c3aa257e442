#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "core/error.h"
#include "device/cuda/benchmark.h"
#include "device/cuda/memory.h"
#include "device/cuda/timed_driver.h"
#include "device/cuda/timer.h"

namespace py = pybind11;

namespace pipert::bindings {
namespace {

using Released = py::call_guard<py::gil_scoped_release>;

std::vector<cuda::StreamView> streams_of(const std::vector<size_t>& handles) {
  std::vector<cuda::StreamView> streams;
  for (const size_t handle : handles) streams.emplace_back(reinterpret_cast<cuda::StreamHandle*>(handle));
  return streams;
}

class PyStream {
 public:
  size_t handle() const noexcept { return reinterpret_cast<size_t>(stream_.view().get()); }
  void synchronize() const { PIPERT_CUDA_TRY(stream_synchronize(stream_.view().get())); }

 private:
  cuda::Stream stream_{0};
};

class PyTimer {
 public:
  void start(const std::vector<size_t>& streams, bool held) { timer_.start(streams_of(streams), held); }
  void stop(const std::vector<size_t>& streams) { timer_.stop(streams_of(streams)); }
  void release() noexcept { timer_.release(); }
  int64_t ns() const { return timer_.ns(); }

 private:
  cuda::Timer timer_;
};

// What needs a context that is current, though nothing may have made one yet.
template <typename Owner, typename... Arguments>
std::unique_ptr<Owner> make(Arguments... arguments) {
  cuda::use_context(0);
  return std::make_unique<Owner>(arguments...);
}

py::buffer_info bytes_of(const cuda::PinnedBuffer& memory) {
  return {memory.data(), 1, py::format_descriptor<uint8_t>::format(), static_cast<py::ssize_t>(memory.num_bytes())};
}

void copies(uint64_t to, uint64_t from, size_t span_bytes, size_t chunk_bytes, int64_t first, int64_t count,
            size_t stream) {
  cuda::enqueue_copies(
      {.to = to, .from = from, .span_bytes = span_bytes, .chunk_bytes = chunk_bytes, .first = first, .count = count},
      cuda::StreamView(reinterpret_cast<cuda::StreamHandle*>(stream)));
}

py::dict call_times() {
  py::dict result;
  for (const cuda::CallTime& time : cuda::take_call_times())
    result[time.name.c_str()] = py::make_tuple(time.calls, time.ns);
  return result;
}

void bind_owners(py::module_& m) {
  py::class_<PyStream>(m, "CudaStream", "A stream of the current CUDA device that waits for no other.")
      .def(py::init(&make<PyStream>))
      .def_property_readonly("handle", &PyStream::handle, "The cudaStream_t, as a number.")
      .def("synchronize", &PyStream::synchronize, Released(), "Returns when the stream has nothing left to do.");
  py::class_<cuda::PinnedBuffer>(m, "PinnedMemory", py::buffer_protocol(), "Page-locked host memory, one piece.")
      .def(py::init(&make<cuda::PinnedBuffer, size_t>), py::arg("nbytes"))
      .def_property_readonly("address", &cuda::PinnedBuffer::address)
      .def_buffer(&bytes_of);
  py::class_<cuda::Graph>(m, "EmptyCudaGraph", "A captured graph in which nothing is done.")
      .def(py::init([] { return std::make_unique<cuda::Graph>(cuda::empty_graph()); }))
      .def_property_readonly(
          "handle", [](const cuda::Graph& graph) { return reinterpret_cast<size_t>(graph.get()); },
          "The cudaGraph_t, as a number.");
  py::class_<PyTimer>(m, "CudaTimer", "Times what is enqueued between start and stop, by the device's clock.")
      .def(py::init(&make<PyTimer>))
      .def(
          "start", &PyTimer::start, py::arg("streams"), py::arg("held"),
          "From here on, on these streams (cudaStream_t as numbers), which begin together. With `held` they go on only "
          "after release(); some hundreds of entries can be enqueued until then.")
      .def("stop", &PyTimer::stop, py::arg("streams"), "To here: the last of the streams to come here counts.")
      .def("release", &PyTimer::release, "Lets the streams go on.")
      .def("ns", &PyTimer::ns, Released(), "Waits for the device, and returns the nanoseconds.");
}

}  // namespace

void bind_cuda_benchmark(py::module_& m) {
  bind_owners(m);
  m.def("cuda_timed_calls", &cuda::timed_calls, "The calls that cuda_call_ns knows.");
  m.def("cuda_call_ns", &cuda::call_ns, py::arg("call"), py::arg("calls"), py::arg("rounds"), Released(),
        "Host nanoseconds of one call of the driver, per round of `calls` on an idle device.");
  m.def("cuda_hop_ns", &cuda::hop_ns, py::arg("by"), py::arg("hops"), py::arg("rounds"), Released(),
        "Device nanoseconds of one hop from a stream to another that waits for it, per round of `hops`. `by`: 'event', "
        "'host word' or 'device word'.");
  m.def("cuda_round_trip_ns", &cuda::round_trip_ns, py::arg("rounds"), Released(),
        "Host nanoseconds from writing a word that a stream waits for to seeing the word that it writes then.");
  m.def("cuda_copies", &copies, py::arg("to"), py::arg("from_"), py::arg("span_bytes"), py::arg("chunk_bytes"),
        py::arg("first"), py::arg("count"), py::arg("stream"),
        "Enqueues `count` copies of chunk_bytes, one after another over span_bytes on both sides and from their "
        "beginning again, the first at chunk number `first`. Addresses of the device or of page-locked memory.");
  m.def("time_cuda_calls", &cuda::time_driver_calls,
        "From the first use of the driver on, and for as long as the process lives, times every call of it. Raises "
        "ConfigError after that first use.");
  m.def("take_cuda_call_times", &call_times,
        "{function: (calls, nanoseconds)} of this thread's calls since it last asked.");
}

}  // namespace pipert::bindings
