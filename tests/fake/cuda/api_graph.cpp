// Capturing streams into graphs, and launching them. A graph cannot be captured into another.

#include <algorithm>

#include "driver.h"

namespace fake_cuda {

CUresult cuStreamBeginCapture_v2(CUstream handle, int mode) {
  return call(__func__, Needs::kContext, [&](Driver& driver, Lock&) -> CUresult {
    const Ref<Stream> stream = driver.find_stream(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (mode < CU_STREAM_CAPTURE_MODE_GLOBAL || mode > CU_STREAM_CAPTURE_MODE_RELAXED) return CUDA_ERROR_INVALID_VALUE;
    if (stream->is_null) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (stream->capture) return CUDA_ERROR_ILLEGAL_STATE;
    driver.captures.push_back(make<Capture>(mode));
    driver.captures.back()->join(stream, {});
    return CUDA_SUCCESS;
  });
}

CUresult cuStreamEndCapture(CUstream handle, CUgraph* graph) {
  return call(__func__, Needs::kContext, [&](Driver& driver, Lock&) -> CUresult {
    const Ref<Stream> stream = driver.find_stream(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    *graph = nullptr;
    const Ref<Capture> capture = stream->capture;
    if (!capture) return CUDA_ERROR_ILLEGAL_STATE;
    if (!(capture->streams.front() == stream)) return spoil(*capture, CUDA_ERROR_STREAM_CAPTURE_UNMATCHED);
    if (capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED && capture->thread != std::this_thread::get_id()) {
      return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
    }
    const bool joined = capture->joined();
    const Ref<Graph> captured = capture->end();
    driver.captures.erase(std::find(driver.captures.begin(), driver.captures.end(), capture));
    if (!capture->valid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (!joined) return spoil(*capture, CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
    *graph = driver.graphs.add(captured);
    return CUDA_SUCCESS;
  });
}

CUresult cuGraphInstantiateWithFlags(CUgraphExec* exec, CUgraph handle, unsigned long long) {
  return call(__func__, Needs::kContext, [&](Driver& driver, Lock&) -> CUresult {
    const Ref<Graph> graph = driver.graphs.find(handle);
    if (!graph) return CUDA_ERROR_INVALID_VALUE;
    const Ref<Exec> result = make<Exec>();
    result->graph = graph;
    *exec = driver.execs.add(result);
    return CUDA_SUCCESS;
  });
}

CUresult cuGraphLaunch(CUgraphExec exec_handle, CUstream handle) {
  return call(__func__, Needs::kContext, [&](Driver& driver, Lock&) -> CUresult {
    const Ref<Exec> exec = driver.execs.find(exec_handle);
    const Ref<Stream> stream = driver.find_stream(handle);
    if (!exec) return CUDA_ERROR_INVALID_VALUE;
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (stream->capture) return CUDA_ERROR_NOT_SUPPORTED;
    stream->push(launch(*exec));
    return CUDA_SUCCESS;
  });
}

CUresult cuGraphExecDestroy(CUgraphExec exec) {
  return call(__func__, Needs::kInit, [&](Driver& driver, Lock&) -> CUresult {
    return driver.execs.remove(exec) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
  });
}

CUresult cuGraphDestroy(CUgraph graph) {
  return call(__func__, Needs::kInit, [&](Driver& driver, Lock&) -> CUresult {
    return driver.graphs.remove(graph) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
  });
}

}  // namespace fake_cuda
