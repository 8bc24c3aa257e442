// The state of the driver, and the frame that every call has.
#pragma once

#include <map>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "driver_api.h"
#include "settings.h"
#include "stream.h"

namespace fake_cuda {

// Objects by handle. A handle is never given out twice, so one that was destroyed is noticed.
template <class T>
class Handles {
 public:
  void* add(Ref<T> object) {
    next_ += 16;
    void* const handle = reinterpret_cast<void*>(next_);  // NOLINT(performance-no-int-to-ptr)
    objects_.emplace(handle, std::move(object));
    return handle;
  }
  // Empty when there is none.
  Ref<T> find(void* handle) const {
    const auto found = objects_.find(handle);
    return found == objects_.end() ? Ref<T>() : found->second;
  }
  Ref<T> remove(void* handle) {
    Ref<T> object = find(handle);
    objects_.erase(handle);
    return object;
  }
  auto begin() const { return objects_.begin(); }
  auto end() const { return objects_.end(); }

 private:
  std::unordered_map<void*, Ref<T>> objects_;
  uintptr_t next_ = 0xFACE0000;
};

struct Memory {
  enum Kind { kDevice, kHost, kImported };
  Kind kind = kDevice;
  uint64_t base = 0;
  size_t bytes = 0;
  int device = 0;
  int fd = -1;         // device memory's file
  uint64_t inode = 0;  // that file's
  uint64_t id = 0;
  int num_opens = 0;  // imported
};

struct Context {
  int num_retained = 0;
  Ref<Stream> null_stream;
};

class Driver {
 public:
  static Driver& get();

  std::mutex mutex;  // guards everything, and gives calls from several threads one order
  bool initialised = false;
  std::vector<Context> contexts;  // per device
  Handles<Stream> streams;
  Handles<Event> events;
  Handles<Graph> graphs;
  Handles<Exec> execs;
  std::vector<Ref<Capture>> captures;     // the active ones
  std::map<uint64_t, Memory> memory;      // by base
  std::map<uint64_t, size_t> registered;  // bytes by base
  uint64_t allocated_bytes = 0;
  uint64_t next_memory_id = 1;

  // The queue of a new stream.
  Ref<Queue> next_queue();
  // Empty when there is none; a null handle is the null stream of the current context.
  Ref<Stream> find_stream(CUstream handle);
  // The memory that holds the address, if any does.
  Memory* find_memory(uint64_t address);
  // Whether a device can reach [address, address + bytes).
  bool mapped(uint64_t address, size_t bytes);

  // An error where a capture forbids calls like cuMemAlloc, to this thread or to all; such captures are then invalid.
  CUresult check_unsafe_call();

 private:
  std::vector<Ref<Queue>> queues_;  // those that streams share
  uint64_t num_queues_ = 0;
};

// -1: none.
int& current_device() noexcept;

using Lock = std::unique_lock<std::mutex>;

enum class Needs { kNothing, kInit, kContext };

// What can be wrong before a call has even looked at the driver, and with the driver as it is; or the fault that the
// environment asks for.
CUresult check_process() noexcept;
CUresult check_call(const Driver& driver, const char* function, Needs needs);

// Runs the body of a call with the driver, which `lock` holds.
template <class Body>
CUresult call(const char* function, Needs needs, Body body) {
  if (const CUresult error = check_process()) return error;
  Driver& driver = Driver::get();
  Lock lock(driver.mutex);
  if (const CUresult error = check_call(driver, function, needs)) return error;
  return body(driver, lock);
}

}  // namespace fake_cuda
