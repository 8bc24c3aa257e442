// Announcements over an edge's host ring: sizes and layouts of a message, ahead of its bytes.
#pragma once

#include <memory>
#include <span>

#include "transport/channel.h"
#include "transport/device/device_end.h"

namespace pipert {

// How many announcements may be on their way: so far the sender's host may be ahead of the receiver's.
inline constexpr uint32_t kAnnouncements = 64;

class AnnouncementSender {
 public:
  explicit AnnouncementSender(SendEnd& end) : end_(end) {}
  // Throws ConfigError when it is too long.
  void send(const DeviceMessage& message, const HostWait& wait);

 private:
  SendEnd& end_;
  std::vector<std::byte> buffer_;
};

class AnnouncementReceiver {
 public:
  // Gives the sender all places of the ring.
  explicit AnnouncementReceiver(RecvEnd& end);
  // Throws TransportError when the sender wrote nonsense.
  Announcement take(const HostWait& wait);

 private:
  RecvEnd& end_;
};

}  // namespace pipert
