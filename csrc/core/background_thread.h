// A thread that a part of the core keeps for itself. Signals belong to Python's main thread, so it takes none; and a
// forked child, which does not have it, leaves it alone.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <thread>

namespace pipert {

class BackgroundThread {
 public:
  BackgroundThread() = default;
  // `name`: what debuggers show, up to 15 characters of it.
  BackgroundThread(const std::string& name, std::function<void()> run);
  BackgroundThread(const BackgroundThread&) = delete;
  BackgroundThread& operator=(const BackgroundThread&) = delete;
  BackgroundThread(BackgroundThread&& other) noexcept = default;
  BackgroundThread& operator=(BackgroundThread&& other) noexcept = default;
  ~BackgroundThread() { join(); }

  // Calls `ask_to_end`, which lets the thread end, and waits until it has; in a forked child, and without a thread,
  // does nothing.
  void join(const std::function<void()>& ask_to_end = {}) noexcept;

 private:
  int process_ = 0;
  std::unique_ptr<std::thread> thread_;
};

}  // namespace pipert
