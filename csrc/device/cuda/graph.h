// Captured graphs.
#pragma once

#include <utility>

#include "device/cuda/stream.h"

namespace pipert::cuda {

class Graph {
 public:
  // Takes over what a capture has ended with.
  explicit Graph(GraphHandle* handle) noexcept : handle_(handle) {}
  Graph(Graph&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Graph& operator=(Graph&&) = delete;
  ~Graph() {
    if (handle_ != nullptr) PIPERT_CUDA_REPORT(graph_destroy(handle_));
  }
  GraphHandle* get() const noexcept { return handle_; }

 private:
  GraphHandle* handle_ = nullptr;
};

// A graph that can be launched.
class GraphExec {
 public:
  // The graph itself may go afterwards.
  explicit GraphExec(GraphHandle* graph) { PIPERT_CUDA_TRY(graph_instantiate(&handle_, graph, 0)); }
  GraphExec(GraphExec&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  GraphExec& operator=(GraphExec&&) = delete;
  ~GraphExec() {
    if (handle_ != nullptr) PIPERT_CUDA_REPORT(graph_exec_destroy(handle_));
  }
  void launch(StreamView stream) const { PIPERT_CUDA_TRY(graph_launch(handle_, stream.get())); }

 private:
  GraphExecHandle* handle_ = nullptr;
};

}  // namespace pipert::cuda
