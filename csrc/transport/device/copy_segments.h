// How the segments of a message lie in device memory: one after another, each start rounded up (kSegmentAlignment).
#pragma once

#include <span>

#include "transport/device/device_end.h"

namespace pipert {

Announcement announcement_of(const DeviceMessage& message);

// Enqueues the copies of all segments into a slot that begins at `slot`.
void copy_segments(cuda::Address slot, std::span<const Segment> segments, cuda::StreamView lane);

}  // namespace pipert
