// All edges of a plan that this process has an end of, where messages lie in device memory. The host channels beside
// them carry announcements, and notice when a peer dies.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "transport/channels.h"
#include "transport/device/device_end.h"
#include "transport/device/device_slots.h"
#include "transport/device/ipc_edge.h"
#include "transport/nccl/nccl_api.h"

namespace pipert {

enum class DeviceTransport { kLocal, kIpc, kNccl };

class DeviceChannels {
 public:
  // On `device`, whose context becomes current if none is. `host` was made with kAnnouncements ring entries.
  // `nccl_ids`: of the topology's edges, for NCCL between processes. Returns when every edge between processes has
  // carried bytes. Throws CudaError, TransportError, PeerLost, ConfigError.
  DeviceChannels(std::shared_ptr<Channels> host, DeviceTransport transport, int device, int64_t timeout_ms,
                 const Interrupt& interrupt = {}, std::span<const nccl::UniqueId> nccl_ids = {});
  DeviceChannels(const DeviceChannels&) = delete;
  DeviceChannels& operator=(const DeviceChannels&) = delete;

  Channels& host() noexcept { return *host_; }
  const Topology& topology() const noexcept { return host_->topology(); }
  bool serves(int32_t rank) const noexcept { return host_->serves(rank); }
  cuda::Context* context() const noexcept { return context_; }
  DeviceTransport transport() const noexcept { return transport_; }

  // The ends that this process has, and the memory of an edge's slots.
  DeviceSendEnd& send_end(int32_t edge) noexcept { return *send_ends_[edge]; }
  DeviceRecvEnd& recv_end(int32_t edge) noexcept { return *recv_ends_[edge]; }
  const std::shared_ptr<DeviceSlots>& slots(int32_t edge) noexcept { return slots_[edge]; }

  // Ends waits of the device for peers, after a failure. From any thread, again and again.
  void release() noexcept;
  // What has gone wrong with a message on the device, if something has. From any thread.
  std::optional<std::string> fault() noexcept;

 private:
  void add_local(size_t edge);
  void add_ipc(int32_t edge);
  void add_nccl(int32_t edge, std::span<const nccl::UniqueId> ids, int64_t timeout_ns, const Interrupt& interrupt);
  HostWait wait_on(const Edge& edge, int64_t deadline_ns, const Interrupt& interrupt) const;
  struct Probe;
  void try_edges(int64_t deadline_ns, const Interrupt& interrupt);
  void offer_probe(size_t edge, Probe& probe);
  void send_probe(size_t edge, Probe& probe, const HostWait& wait);
  void receive_probe(size_t edge, Probe& probe, const HostWait& wait);

  std::shared_ptr<Channels> host_;
  DeviceTransport transport_;
  cuda::Context* context_;
  std::shared_ptr<PeerMappings> mappings_ = std::make_shared<PeerMappings>();
  std::vector<std::shared_ptr<DeviceSlots>> slots_;
  std::vector<std::shared_ptr<DeviceSendEnd>> send_ends_;
  std::vector<std::shared_ptr<DeviceRecvEnd>> recv_ends_;
};

}  // namespace pipert
