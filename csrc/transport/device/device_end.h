// The two ends of a directed edge whose messages lie in device memory. Every call only enqueues; what has to be known
// on the host (sizes, layouts) travels ahead, as an announcement.
//
//   receiver                               sender
//   offer(slot)    on its offers stream    announces the message on the host
//   announced()    on the host             send(slot, …) on its lane: waits for the offer, moves the bytes
//   receive(slot)  on its lane: waits for the bytes
//
// Slots are numbered as the topology numbers them on their edge; one more, the last, is for trying the edge.
// One thread calls everything but release() and fault().
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "device/cuda/stream.h"
#include "transport/channel.h"

namespace pipert {

// Waits on the host until `reached`, given how long it may sleep, says so. Throws when the wait makes no sense any
// more.
using HostWait = std::function<void(const std::function<bool(int64_t slice_ns)>& reached)>;

struct Announcement {
  std::vector<uint64_t> segment_bytes;
  std::vector<std::byte> header;

  size_t packed_bytes() const noexcept;
};

struct DeviceMessage {
  std::span<const Segment> segments;
  std::span<const std::byte> header;
  // The receiver knows sizes and layouts from an earlier step, so nothing is announced.
  bool known = false;
};

class DeviceSendEnd {
 public:
  virtual ~DeviceSendEnd() = default;
  // Enqueues the next message on `lane`, into the receiver's `slot`. Its memory is free when the lane has come this
  // far.
  virtual void send(uint32_t slot, const DeviceMessage& message, cuda::StreamView lane, const HostWait& wait) = 0;
  // From any thread, again and again: ends waits of the device for a peer that will not come.
  virtual void release() noexcept {}
  // From any thread: what has gone wrong on the device, if something has.
  virtual std::optional<std::string> fault() noexcept { return std::nullopt; }
};

class DeviceRecvEnd {
 public:
  virtual ~DeviceRecvEnd() = default;
  // Whether offer() is to be called as soon as the slot is free; otherwise receive() is that offer.
  virtual bool offers() const noexcept { return true; }
  // Tells the sender that `slot` is free once `offers` has come this far.
  virtual void offer(uint32_t slot, cuda::StreamView offers) = 0;
  // The announcement of the next message.
  virtual Announcement announced(const HostWait& wait) = 0;
  // Makes `slot`, which is free, large enough, and lets the sender know.
  virtual void prepare(uint32_t slot, size_t num_bytes) = 0;
  // Lets `lane` wait until the next message lies in `slot`, which was prepared for it.
  virtual void receive(uint32_t slot, std::span<const uint64_t> segment_bytes, cuda::StreamView lane,
                       const HostWait& wait) = 0;
  // As above.
  virtual void release() noexcept {}
  virtual std::optional<std::string> fault() noexcept { return std::nullopt; }
};

}  // namespace pipert
