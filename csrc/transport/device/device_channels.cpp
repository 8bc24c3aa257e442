#include "transport/device/device_channels.h"

#include <unistd.h>

#include <array>
#include <cstring>
#include <optional>
#include <utility>

#include "core/clock.h"
#include "core/error.h"
#include "transport/device/ipc_edge.h"
#include "transport/device/local_edge.h"
#include "transport/device/nccl_edge.h"

namespace pipert {
namespace {

constexpr int64_t kSliceNs = 200'000;
using ProbeWord = uint64_t;

// What an edge carries first: a word of its own.
ProbeWord probe_of(const Edge& edge) {
  return 0x7069706572740000u + (static_cast<uint64_t>(edge.source) << 8) + static_cast<uint64_t>(edge.destination);
}

}  // namespace

// What one end of an edge needs to be tried.
struct DeviceChannels::Probe {
  cuda::Stream stream{0};
  cuda::Event done{cuda::Timing::kOff};
  cuda::DeviceBuffer memory{DeviceSlots::kGranularity};
  cuda::PinnedBuffer word{sizeof(ProbeWord)};

  bool finished(int64_t slice_ns) const {
    if (done.view().happened()) return true;
    usleep(static_cast<useconds_t>(slice_ns / 1000));
    return false;
  }
  ProbeWord value() const noexcept {
    ProbeWord value = 0;
    std::memcpy(&value, word.data(), sizeof value);
    return value;
  }
};

DeviceChannels::DeviceChannels(std::shared_ptr<Channels> host, DeviceTransport transport, int device,
                               int64_t timeout_ms, const Interrupt& interrupt, std::span<const nccl::UniqueId> nccl_ids)
    : host_(std::move(host)), transport_(transport), context_(cuda::use_context(device)) {
  const size_t num_edges = topology().edges.size();
  send_ends_.resize(num_edges);
  recv_ends_.resize(num_edges);
  if (transport_ == DeviceTransport::kLocal && host_->rank() >= 0) {
    throw ConfigError("the local transport is for ranks that live in one process; this process is rank " +
                      std::to_string(host_->rank()) + " of several");
  }
  for (const Edge& edge : topology().edges) slots_.push_back(std::make_shared<DeviceSlots>(edge.num_slots + 1));
  const bool needs_ids = transport_ == DeviceTransport::kNccl && host_->rank() >= 0;
  if (needs_ids && nccl_ids.size() != num_edges) {
    throw ConfigError("there are " + std::to_string(nccl_ids.size()) + " NCCL ids for " + std::to_string(num_edges) +
                      " edges");
  }
  const int64_t timeout_ns = timeout_ms * 1'000'000;
  for (int32_t edge = 0; edge < static_cast<int32_t>(num_edges); ++edge) {
    if (transport_ == DeviceTransport::kLocal) add_local(edge);
    if (transport_ == DeviceTransport::kIpc) add_ipc(edge);
    if (transport_ == DeviceTransport::kNccl) add_nccl(edge, nccl_ids, timeout_ns, interrupt);
  }
  if (transport_ != DeviceTransport::kLocal) try_edges(now_ns() + timeout_ns, interrupt);
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

// The ranks make their communicators in one order, that of the edges, each with both its ends at once: nobody waits in
// a circle.
void DeviceChannels::add_nccl(int32_t edge, std::span<const nccl::UniqueId> ids, int64_t timeout_ns,
                              const Interrupt& interrupt) {
  const bool sends = serves(topology().edges[edge].source);
  const bool receives = serves(topology().edges[edge].destination);
  const int64_t deadline_ns = now_ns() + timeout_ns;
  if (sends && receives) {
    const auto both = std::make_shared<NcclSelfEdge>(NcclCommunicator::create_self_edge(deadline_ns, interrupt),
                                                     slots_[edge], timeout_ns);
    send_ends_[edge] = both;
    recv_ends_[edge] = both;
  } else if (sends) {
    send_ends_[edge] = std::make_shared<NcclSendEnd>(NcclCommunicator::create(ids[edge], 0, deadline_ns, interrupt),
                                                     host_->send_end(edge), timeout_ns);
  } else if (receives) {
    recv_ends_[edge] = std::make_shared<NcclRecvEnd>(NcclCommunicator::create(ids[edge], 1, deadline_ns, interrupt),
                                                     host_->recv_end(edge), slots_[edge], timeout_ns);
  }
}

std::optional<std::string> DeviceChannels::fault() noexcept {
  std::optional<std::string> fault;
  for (const auto& end : send_ends_) {
    if (end && !fault) fault = end->fault();
  }
  for (const auto& end : recv_ends_) {
    if (end && !fault) fault = end->fault();
  }
  return fault;
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

// A word over every edge, by the same calls as in a step. All ranks offer everything first, and then go through the
// edges in the topology's order, each at its end: of those that wait, one is always at the first edge that is not done,
// and so is its peer.
void DeviceChannels::try_edges(int64_t deadline_ns, const Interrupt& interrupt) {
  const std::vector<Edge>& edges = topology().edges;
  std::vector<std::optional<Probe>> sent(edges.size());
  std::vector<std::optional<Probe>> received(edges.size());
  try {
    for (size_t edge = 0; edge < edges.size(); ++edge) {
      if (send_ends_[edge]) sent[edge].emplace();
      if (recv_ends_[edge]) offer_probe(edge, received[edge].emplace());
    }
    for (size_t edge = 0; edge < edges.size(); ++edge) {
      const HostWait wait = wait_on(edges[edge], deadline_ns, interrupt);
      if (send_ends_[edge]) send_probe(edge, *sent[edge], wait);
      if (recv_ends_[edge]) receive_probe(edge, *received[edge], wait);
    }
    for (size_t edge = 0; edge < edges.size(); ++edge) {
      const HostWait wait = wait_on(edges[edge], deadline_ns, interrupt);
      if (send_ends_[edge]) wait([&](int64_t slice_ns) { return sent[edge]->finished(slice_ns); });
      if (!recv_ends_[edge]) continue;
      wait([&](int64_t slice_ns) { return received[edge]->finished(slice_ns); });
      if (received[edge]->value() == probe_of(edges[edge])) continue;
      throw TransportError("the edge from rank " + std::to_string(edges[edge].source) + " to rank " +
                           std::to_string(edges[edge].destination) + " carried something else than what was sent");
    }
  } catch (...) {
    release();  // so that the probes' streams come to their ends
    throw;
  }
}

void DeviceChannels::offer_probe(size_t edge, Probe& probe) {
  const uint32_t slot = topology().edges[edge].num_slots;
  slots_[edge]->use([&probe](uint32_t, size_t) { return probe.memory.address(); });
  recv_ends_[edge]->prepare(slot, sizeof(ProbeWord));
  recv_ends_[edge]->offer(slot, probe.stream.view());
}

void DeviceChannels::send_probe(size_t edge, Probe& probe, const HostWait& wait) {
  const ProbeWord word = probe_of(topology().edges[edge]);
  std::memcpy(probe.word.data(), &word, sizeof word);
  const cuda::StreamView stream = probe.stream.view();
  stream.copy(probe.memory.address(), probe.word.address(), sizeof word);
  const std::array segments{
      Segment{.data = reinterpret_cast<const void*>(probe.memory.address()), .num_bytes = sizeof word}};
  send_ends_[edge]->send(topology().edges[edge].num_slots, {.segments = segments, .header = {}}, stream, wait);
  stream.record(probe.done.view());
}

void DeviceChannels::receive_probe(size_t edge, Probe& probe, const HostWait& wait) {
  const cuda::StreamView stream = probe.stream.view();
  const Announcement announcement = recv_ends_[edge]->announced(wait);
  recv_ends_[edge]->receive(topology().edges[edge].num_slots, announcement.segment_bytes, stream, wait);
  stream.copy(probe.word.address(), probe.memory.address(), sizeof(ProbeWord));
  stream.record(probe.done.view());
}

}  // namespace pipert
