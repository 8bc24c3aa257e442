// Watches what the device does when the host has enqueued it and gone on: ends its waits when something failed, and
// fails when it takes too long.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>

#include "core/background_thread.h"
#include "core/counter.h"
#include "transport/device/device_channels.h"

namespace pipert {

class Watchdog {
 public:
  // `overdue`: what to say of a device that takes longer; called on the watchdog's thread.
  Watchdog(DeviceChannels& channels, int64_t timeout_ns, std::function<std::string()> overdue);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  // The device is at work until `end`; the event must live until it has happened or this is gone.
  void expect(cuda::EventView end);
  // In between the driver is asked nothing: while a stream is captured some drivers take that amiss.
  void pause();
  void resume();

 private:
  void loop();
  void look();

  DeviceChannels& channels_;
  int64_t timeout_ns_;
  std::function<std::string()> overdue_;
  std::mutex mutex_;
  cuda::EventView end_;  // guarded by mutex_, as the next two
  int64_t deadline_ns_ = 0;
  bool paused_ = false;
  Counter nudges_;
  std::atomic<bool> stop_{false};
  BackgroundThread thread_;
};

}  // namespace pipert
