#include "transport/device/announcer.h"

#include <cstring>
#include <string>

#include "core/error.h"

namespace pipert {

// | number of segments | bytes of each ... | header |, the numbers as uint64_t.
void AnnouncementSender::send(const DeviceMessage& message, const HostWait& wait) {
  const size_t num_segments = message.segments.size();
  const size_t sizes_bytes = (1 + num_segments) * sizeof(uint64_t);
  if (sizes_bytes + message.header.size() > kMaxHeaderBytes) {
    throw ConfigError("a message of " + std::to_string(num_segments) + " tensors needs an announcement of " +
                      std::to_string(sizes_bytes + message.header.size()) + " bytes, more than " +
                      std::to_string(kMaxHeaderBytes) + "; hand on fewer tensors");
  }
  buffer_.resize(sizes_bytes + message.header.size());
  const uint64_t count = num_segments;
  std::memcpy(buffer_.data(), &count, sizeof count);
  for (size_t index = 0; index < num_segments; ++index) {
    const uint64_t num_bytes = message.segments[index].num_bytes;
    std::memcpy(buffer_.data() + (1 + index) * sizeof num_bytes, &num_bytes, sizeof num_bytes);
  }
  if (!message.header.empty()) std::memcpy(buffer_.data() + sizes_bytes, message.header.data(), message.header.size());
  if (!end_.ready()) {
    wait([this](int64_t slice_ns) { return end_.event().sleep(end_.event_target(), slice_ns); });
  }
  end_.send({}, buffer_);
}

AnnouncementReceiver::AnnouncementReceiver(RecvEnd& end) : end_(end) {
  while (end_.can_post()) end_.post(0);
}

Announcement AnnouncementReceiver::take(const HostWait& wait) {
  if (!end_.arrived()) {
    wait([this](int64_t slice_ns) { return end_.event().sleep(end_.event_target(), slice_ns); });
  }
  const std::span<const std::byte> bytes = end_.take().header;
  uint64_t count = 0;
  if (bytes.size() >= sizeof count) std::memcpy(&count, bytes.data(), sizeof count);
  if (bytes.size() < sizeof count || count > (bytes.size() - sizeof count) / sizeof count) {
    throw TransportError("the sender announced a message that makes no sense");
  }
  Announcement announcement;
  announcement.segment_bytes.resize(count);
  if (count > 0) std::memcpy(announcement.segment_bytes.data(), bytes.data() + sizeof count, count * sizeof count);
  const std::span<const std::byte> header = bytes.subspan((1 + count) * sizeof count);
  announcement.header.assign(header.begin(), header.end());
  end_.post(0);
  return announcement;
}

}  // namespace pipert
