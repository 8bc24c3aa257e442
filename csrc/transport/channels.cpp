#include "transport/channels.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "core/clock.h"
#include "core/error.h"

namespace pipert {
namespace {

constexpr int64_t kSliceNs = 50'000'000;

std::string edge_text(const Edge& edge) {
  return "the edge from rank " + std::to_string(edge.source) + " to rank " + std::to_string(edge.destination);
}

}  // namespace

Channels::Channels(Topology topology, int32_t rank)
    : topology_(std::move(topology)),
      rank_(rank),
      send_ends_(topology_.edges.size()),
      recv_ends_(topology_.edges.size()) {}

Channels::~Channels() { close(); }

void Channels::add_ends(int32_t edge, const std::shared_ptr<EdgeMemory>& memory) {
  if (serves(topology_.edges[edge].source)) send_ends_[edge] = std::make_unique<SendEnd>(memory);
  if (serves(topology_.edges[edge].destination)) recv_ends_[edge] = std::make_unique<RecvEnd>(memory);
}

std::shared_ptr<Channels> Channels::local(Topology topology) {
  std::shared_ptr<Channels> channels(new Channels(std::move(topology), -1));
  for (size_t edge = 0; edge < channels->topology_.edges.size(); ++edge) {
    channels->add_ends(static_cast<int32_t>(edge), EdgeMemory::heap(channels->topology_.edges[edge]));
  }
  return channels;
}

std::shared_ptr<Channels> Channels::shm(Topology topology, int32_t rank, const std::string& session, int64_t timeout_ms,
                                        const Interrupt& interrupt) {
  if (rank < 0 || rank >= topology.num_ranks) {
    throw ConfigError("rank " + std::to_string(rank) + " of a plan for " + std::to_string(topology.num_ranks) +
                      " ranks");
  }
  const int64_t deadline_ns = now_ns() + timeout_ms * 1'000'000;
  std::shared_ptr<Channels> channels(new Channels(std::move(topology), rank));
  const std::vector<Edge>& edges = channels->topology_.edges;
  channels->mesh_ = std::make_unique<Mesh>(MeshAddress{.session = session,
                                                       .rank = rank,
                                                       .num_ranks = channels->topology_.num_ranks,
                                                       .fingerprint = channels->topology_.fingerprint},
                                           deadline_ns, interrupt);
  Mesh& mesh = *channels->mesh_;
  // All ranks pass before they take, so nobody waits in a circle; between two ranks there is one edge in each
  // direction.
  for (size_t edge = 0; edge < edges.size(); ++edge) {
    if (edges[edge].destination != rank) continue;
    const std::shared_ptr<EdgeMemory> memory = EdgeMemory::create(edges[edge]);
    mesh.pass_fd(edges[edge].source, memory->fd());
    channels->add_ends(static_cast<int32_t>(edge), memory);
  }
  for (size_t edge = 0; edge < edges.size(); ++edge) {
    if (edges[edge].source != rank) continue;
    UniqueFd fd = mesh.take_fd(edges[edge].destination, deadline_ns, interrupt);
    channels->add_ends(static_cast<int32_t>(edge), EdgeMemory::open(edges[edge], std::move(fd)));
  }
  mesh.watch(channels->failure_);
  channels->try_edges(deadline_ns, interrupt);
  return channels;
}

// Sends the edge's own name over every edge. All ranks post everything before they send, and send everything before
// they wait for an arrival, in the topology's order: nobody waits in a circle.
void Channels::try_edges(int64_t deadline_ns, const Interrupt& interrupt) {
  const auto await = [&](const Edge& edge, Counter& event, uint64_t target) {
    const int32_t peer = edge.source == rank_ ? edge.destination : edge.source;
    for (;;) {
      const bool gone = left(peer);  // before the last look at the event
      if (event.sleep(target, kSliceNs)) return;
      if (gone) throw PeerLost("rank " + std::to_string(peer) + " left while connecting", {.rank = peer});
      if (failure_.raised()) throw PeerLost(failure_.failure().text, {.rank = failure_.failure().rank});
      if (now_ns() > deadline_ns) throw TransportError(edge_text(edge) + " carried nothing in time", {.rank = rank_});
      if (interrupt) interrupt();
    }
  };
  for (const std::unique_ptr<RecvEnd>& end : recv_ends_) {
    if (end) end->post(0);
  }
  for (size_t index = 0; index < send_ends_.size(); ++index) {
    if (!send_ends_[index]) continue;
    SendEnd& end = *send_ends_[index];
    await(topology_.edges[index], end.event(), end.event_target());
    const std::string text = edge_text(topology_.edges[index]);
    const std::array segments{Segment{.data = text.data(), .num_bytes = text.size()}};
    end.send(segments, std::as_bytes(std::span(text)));
  }
  for (size_t index = 0; index < recv_ends_.size(); ++index) {
    if (!recv_ends_[index]) continue;
    RecvEnd& end = *recv_ends_[index];
    await(topology_.edges[index], end.event(), end.event_target());
    const std::string text = edge_text(topology_.edges[index]);
    const Arrival arrival = end.take();
    if (arrival.num_bytes != text.size() || arrival.header.size() != text.size() ||
        std::memcmp(end.memory()->slot(0), text.data(), text.size()) != 0 ||
        std::memcmp(arrival.header.data(), text.data(), text.size()) != 0) {
      throw TransportError(edge_text(topology_.edges[index]) + " carried something else than what was sent",
                           {.rank = rank_});
    }
  }
}

void Channels::check_serves(std::vector<int32_t> ranks) const {
  std::sort(ranks.begin(), ranks.end());
  size_t index = 0;
  for (int32_t rank = 0; rank < topology_.num_ranks; ++rank) {
    const bool named = index < ranks.size() && ranks[index] == rank;
    if (named != serves(rank)) {
      throw ConfigError("rank " + std::to_string(rank) + (named ? " is not served by" : " is missing, but served by") +
                        " these channels");
    }
    index += named;
  }
  if (index != ranks.size()) {
    throw ConfigError("the list of ranks names one twice, or one that the plan does not have");
  }
}

void Channels::fail(Failure failure) noexcept {
  failure_.raise(std::move(failure));
  if (mesh_) mesh_->tell(failure_.failure());
}

void Channels::close() noexcept {
  if (closed_.exchange(true)) return;
  failure_.raise({.kind = FailureKind::kAborted, .rank = rank_, .op = {}, .text = "the channels were closed"});
  if (mesh_) mesh_->close();
}

}  // namespace pipert
