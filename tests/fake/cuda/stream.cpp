#include "stream.h"

#include <algorithm>
#include <utility>

namespace fake_cuda {
namespace {

// Adds what is missing.
void merge(std::vector<uint32_t>& nodes, const std::vector<uint32_t>& more) {
  for (const uint32_t node : more) {
    if (std::find(nodes.begin(), nodes.end(), node) == nodes.end()) nodes.push_back(node);
  }
}

// A stream that waits for an event of a capture takes part in it from then on.
CUresult await_captured(const Ref<Stream>& stream, const Event& event) {
  Capture& capture = *event.capture;
  if (!capture.active) {
    return stream->capture ? spoil(*stream->capture, CUDA_ERROR_STREAM_CAPTURE_ISOLATION) : CUDA_ERROR_CAPTURED_EVENT;
  }
  if (!capture.valid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  if (stream->capture && !(stream->capture == event.capture)) {
    spoil(*stream->capture, CUDA_ERROR_STREAM_CAPTURE_MERGE);
    return spoil(capture, CUDA_ERROR_STREAM_CAPTURE_MERGE);
  }
  if (stream->is_null) return spoil(capture, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
  if (stream->capture) {
    merge(stream->frontier, event.nodes);
  } else {
    capture.join(stream, event.nodes);
  }
  return CUDA_SUCCESS;
}

}  // namespace

CUresult spoil(Capture& capture, CUresult error) {
  capture.valid = false;
  return error;
}

void Stream::push(Work work) {
  queue->push(std::move(work), progress);
  ++num_pushed;
}

void Capture::join(const Ref<Stream>& stream, std::vector<uint32_t> frontier) {
  stream->capture = Ref<Capture>(this);
  stream->branch = graph->num_branches++;
  stream->frontier = std::move(frontier);
  streams.push_back(stream);
}

void Capture::add(Stream& stream, Node node) {
  node.branch = stream.branch;
  node.after = std::move(stream.frontier);
  stream.frontier = {static_cast<uint32_t>(graph->nodes.size())};
  graph->nodes.push_back(std::move(node));
}

bool Capture::joined() const {
  std::vector<bool> reached(graph->nodes.size(), false);
  for (const uint32_t node : streams.front()->frontier) reached[node] = true;
  for (size_t node = reached.size(); node-- > 0;) {
    if (!reached[node]) return false;
    for (const uint32_t before : graph->nodes[node].after) reached[before] = true;
  }
  return true;
}

Ref<Graph> Capture::end() {
  active = false;
  for (const Ref<Stream>& stream : streams) {
    stream->capture = {};
    stream->frontier.clear();
  }
  streams.clear();
  return std::exchange(graph, {});
}

CUresult submit(Stream& stream, Work work) {
  if (!stream.capture) {
    stream.push(std::move(work));
    return CUDA_SUCCESS;
  }
  if (!stream.capture->valid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  stream.capture->add(stream, {.work = std::move(work), .external_record = {}, .external_wait = {}, .after = {}});
  return CUDA_SUCCESS;
}

CUresult record(const Ref<Event>& event, Stream& stream, bool external) {
  if (stream.capture && !stream.capture->valid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  if (external) {
    if (!stream.capture) return CUDA_ERROR_INVALID_VALUE;
    stream.capture->add(stream, {.work = {}, .external_record = event, .external_wait = {}, .after = {}});
  } else if (stream.capture) {
    event->latest = {};
    event->capture = stream.capture;
    event->nodes = stream.frontier;
  } else {
    const Ref<Record> record = make<Record>();
    event->latest = record;
    event->capture = {};
    stream.push([record] { record->complete(); });
  }
  return CUDA_SUCCESS;
}

CUresult await(const Ref<Stream>& stream, const Ref<Event>& event, bool external) {
  if (stream->capture && !stream->capture->valid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  if (external) {
    if (!stream->capture) return CUDA_ERROR_INVALID_VALUE;
    stream->capture->add(*stream, {.work = {}, .external_record = {}, .external_wait = event, .after = {}});
    return CUDA_SUCCESS;
  }
  if (event->capture) return await_captured(stream, *event);
  if (!event->latest) return CUDA_SUCCESS;
  if (stream->capture) return spoil(*stream->capture, CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
  stream->push([record = event->latest] { record->wait(); });
  return CUDA_SUCCESS;
}

}  // namespace fake_cuda
