// Streams, events, and the captures that they take part in. All of it is guarded by the driver's lock; the threads of
// the queues see none of it.
#pragma once

#include <thread>
#include <vector>

#include "driver_api.h"
#include "graph.h"
#include "queue.h"

namespace fake_cuda {

class Capture;

struct Stream : Shared {
  Stream(int device, Ref<Queue> queue) : device(device), queue(std::move(queue)) {}

  int device;
  Ref<Queue> queue;
  Ref<Queue::Progress> progress = make<Queue::Progress>();
  uint32_t num_pushed = 0;
  bool is_null = false;

  Ref<Capture> capture;
  uint32_t branch = 0;             // in the capture
  std::vector<uint32_t> frontier;  // the nodes that the next one comes after

  void push(Work work);
};

class Event : public Shared {
 public:
  Event(int device, unsigned flags) : device(device), flags(flags) {}

  int device;
  unsigned flags;
  Ref<Record> latest;  // none before the first

  // Where it was recorded last, if that was in a capture: then there is no record.
  Ref<Capture> capture;
  std::vector<uint32_t> nodes;
};

class Capture : public Shared {
 public:
  explicit Capture(int mode) : mode(mode) {}

  int mode;
  std::thread::id thread = std::this_thread::get_id();  // that began it
  bool active = true;                                   // until its end
  bool valid = true;
  Ref<Graph> graph = make<Graph>();
  std::vector<Ref<Stream>> streams;  // first the one that it began on

  void join(const Ref<Stream>& stream, std::vector<uint32_t> frontier);
  void add(Stream& stream, Node node);
  // Whether the origin's next node would come after everything.
  bool joined() const;
  // Takes every stream, and the graph, out of it.
  Ref<Graph> end();
};

// The error, after which the capture is invalid.
CUresult spoil(Capture& capture, CUresult error);

// Makes the stream do the work, or captures it.
CUresult submit(Stream& stream, Work work);

CUresult record(const Ref<Event>& event, Stream& stream, bool external);
CUresult await(const Ref<Stream>& stream, const Ref<Event>& event, bool external);

}  // namespace fake_cuda
