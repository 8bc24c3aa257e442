#include "transport/device/device_channels.h"

#include <unistd.h>

#include <array>
#include <cstring>
#include <utility>

#include "core/clock.h"
#include "core/error.h"
#include "transport/device/ipc_edge.h"
#include "transport/device/local_edge.h"

namespace pipert {
namespace {

constexpr int64_t kSliceNs = 200'000;
using ProbeWord = uint64_t;

// What an edge carries first: a word of its own.
ProbeWord probe_of(const Edge& edge) {
  return 0x7069706572740000u + (static_cast<uint64_t>(edge.source) << 8) + static_cast<uint64_t>(edge.destination);
}

// What one end of an edge needs to be tried.
struct Probe {
  cuda::Stream stream{0};
  cuda::Event done{cuda::Timing::kOff};
  cuda::DeviceBuffer memory{DeviceSlots::kGranularity};
  cuda::PinnedBuffer word{sizeof(ProbeWord)};

  bool finished(int64_t slice_ns) const {
    if (done.view().happened()) return true;
    usleep(static_cast<useconds_t>(slice_ns / 1000));
    return false;
  }
};

}  // namespace

DeviceChannels::DeviceChannels(std::shared_ptr<Channels> host, DeviceTransport transport, int device,
                               int64_t timeout_ms, const Interrupt& interrupt)
    : host_(std::move(host)), transport_(transport), context_(cuda::use_context(device)) {
  const size_t num_edges = topology().edges.size();
  send_ends_.resize(num_edges);
  recv_ends_.resize(num_edges);
  if (transport_ == DeviceTransport::kLocal && host_->rank() >= 0) {
    throw ConfigError("the local transport is for ranks that live in one process; this process is rank " +
                      std::to_string(host_->rank()) + " of several");
  }
  for (const Edge& edge : topology().edges) slots_.push_back(std::make_shared<DeviceSlots>(edge.num_slots + 1));
  for (size_t edge = 0; edge < num_edges; ++edge) {
    if (transport_ == DeviceTransport::kLocal) {
      add_local(edge);
    } else {
      add_ipc(static_cast<int32_t>(edge));
    }
  }
  if (transport_ != DeviceTransport::kLocal) try_edges(now_ns() + timeout_ms * 1'000'000, interrupt);
}

void DeviceChannels::add_local(size_t edge) {
  const auto both = std::make_shared<LocalEdge>(slots_[edge]);
  send_ends_[edge] = both;
  recv_ends_[edge] = both;
}

void DeviceChannels::add_ipc(int32_t edge) {
  const bool sends = serves(topology().edges[edge].source);
  const bool receives = serves(topology().edges[edge].destination);
  if (!sends && !receives) return;
  const auto memory = sends ? host_->send_end(edge).memory() : host_->recv_end(edge).memory();
  const auto table = std::make_shared<IpcSlots>(memory, slots_[edge]->num_slots());
  if (receives) recv_ends_[edge] = std::make_shared<IpcRecvEnd>(table, host_->recv_end(edge), slots_[edge]);
  if (sends) {
    send_ends_[edge] = std::make_shared<IpcSendEnd>(table, host_->send_end(edge), mappings_, recv_ends_[edge]);
  }
}

void DeviceChannels::release() noexcept {
  for (const auto& end : send_ends_) {
    if (end) end->release();
  }
  for (const auto& end : recv_ends_) {
    if (end) end->release();
  }
}

// A wait for the edge's other end while connecting.
HostWait DeviceChannels::wait_on(const Edge& edge, int64_t deadline_ns, const Interrupt& interrupt) const {
  const int32_t peer = edge.source == host_->rank() ? edge.destination : edge.source;
  return [this, edge, peer, deadline_ns, &interrupt](const std::function<bool(int64_t)>& reached) {
    for (;;) {
      const bool gone = host_->left(peer);  // before the last look
      if (reached(kSliceNs)) return;
      const FailureFlag& failure = host_->failure();
      if (failure.raised()) throw PeerLost(failure.failure().text, {.rank = failure.failure().rank});
      if (gone) throw PeerLost("rank " + std::to_string(peer) + " left while connecting", {.rank = peer});
      if (now_ns() > deadline_ns) {
        throw TransportError("the edge from rank " + std::to_string(edge.source) + " to rank " +
                             std::to_string(edge.destination) + " carried nothing in time through device memory");
      }
      if (interrupt) interrupt();
    }
  };
}

// A word over every edge, by the same calls as in a step. All ranks offer everything before they send, and send
// everything before they wait for an arrival, in the topology's order: nobody waits in a circle.
void DeviceChannels::try_edges(int64_t deadline_ns, const Interrupt& interrupt) {
  const std::vector<Edge>& edges = topology().edges;
  std::vector<Probe> sent(edges.size());
  std::vector<Probe> received(edges.size());
  try {
    for (size_t index = 0; index < edges.size(); ++index) {
      if (!recv_ends_[index]) continue;
      slots_[index]->use([&, index](uint32_t, size_t) { return received[index].memory.address(); });
      recv_ends_[index]->prepare(edges[index].num_slots, sizeof(ProbeWord));
      recv_ends_[index]->offer(edges[index].num_slots, received[index].stream.view());
    }
    for (size_t index = 0; index < edges.size(); ++index) {
      if (!send_ends_[index]) continue;
      const Probe& probe = sent[index];
      const ProbeWord word = probe_of(edges[index]);
      std::memcpy(probe.word.data(), &word, sizeof word);
      probe.stream.view().copy(probe.memory.address(), probe.word.address(), sizeof word);
      const std::array segments{
          Segment{.data = reinterpret_cast<const void*>(probe.memory.address()), .num_bytes = sizeof word}};
      send_ends_[index]->send(edges[index].num_slots, {.segments = segments, .header = {}}, probe.stream.view(),
                              wait_on(edges[index], deadline_ns, interrupt));
      probe.stream.view().record(probe.done.view());
    }
    for (size_t index = 0; index < edges.size(); ++index) {
      if (!recv_ends_[index]) continue;
      const Probe& probe = received[index];
      const Announcement announcement = recv_ends_[index]->announced(wait_on(edges[index], deadline_ns, interrupt));
      recv_ends_[index]->receive(edges[index].num_slots, announcement.segment_bytes, probe.stream.view());
      probe.stream.view().copy(probe.word.address(), probe.memory.address(), sizeof(ProbeWord));
      probe.stream.view().record(probe.done.view());
    }
    for (size_t index = 0; index < edges.size(); ++index) {
      const HostWait wait = wait_on(edges[index], deadline_ns, interrupt);
      const auto done = [&](const Probe& probe) { wait([&](int64_t slice_ns) { return probe.finished(slice_ns); }); };
      if (send_ends_[index]) done(sent[index]);
      if (!recv_ends_[index]) continue;
      done(received[index]);
      ProbeWord word = 0;
      std::memcpy(&word, received[index].word.data(), sizeof word);
      if (word != probe_of(edges[index])) {
        throw TransportError("the edge from rank " + std::to_string(edges[index].source) + " to rank " +
                             std::to_string(edges[index].destination) + " carried something else than what was sent");
      }
    }
  } catch (...) {
    release();  // so that the probes' streams come to their ends
    throw;
  }
}

}  // namespace pipert
