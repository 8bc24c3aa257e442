#include "transport/device/copy_segments.h"

namespace pipert {

size_t Announcement::packed_bytes() const noexcept {
  size_t end = 0;
  for (const uint64_t num_bytes : segment_bytes) end = segment_start(end) + num_bytes;
  return end;
}

Announcement announcement_of(const DeviceMessage& message) {
  Announcement announcement{.segment_bytes = {}, .header = {message.header.begin(), message.header.end()}};
  for (const Segment& segment : message.segments) announcement.segment_bytes.push_back(segment.num_bytes);
  return announcement;
}

void copy_segments(cuda::Address slot, std::span<const Segment> segments, cuda::StreamView lane) {
  size_t end = 0;
  for (const Segment& segment : segments) {
    end = segment_start(end);
    if (segment.num_bytes > 0) lane.copy(slot + end, reinterpret_cast<cuda::Address>(segment.data), segment.num_bytes);
    end += segment.num_bytes;
  }
}

}  // namespace pipert
