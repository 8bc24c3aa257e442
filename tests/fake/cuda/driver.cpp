#include "driver.h"

#include <pthread.h>

namespace fake_cuda {
namespace {

// The driver does not survive a fork: none of its threads does.
std::atomic<bool> forked{false};

__attribute__((destructor)) void at_exit() { stop_working(); }

}  // namespace

Driver& Driver::get() {
  static auto* const driver = [] {  // never destroyed: threads outlive main()
    pthread_atfork(nullptr, nullptr, [] { forked.store(true); });
    return new Driver;
  }();
  return *driver;
}

int& current_device() noexcept {
  thread_local int device = -1;
  return device;
}

CUresult check_process() noexcept {
  if (forked.load()) return CUDA_ERROR_NOT_INITIALIZED;
  return in_host_function() ? CUDA_ERROR_NOT_PERMITTED : CUDA_SUCCESS;
}

CUresult check_call(const Driver& driver, const char* function, Needs needs) {
  if (needs != Needs::kNothing && !driver.initialised) return CUDA_ERROR_NOT_INITIALIZED;
  if (needs == Needs::kContext && current_device() < 0) return CUDA_ERROR_INVALID_CONTEXT;
  return next_fault(function);
}

Ref<Queue> Driver::next_queue() {
  const uint64_t number = num_queues_++;
  const uint32_t max_connections = settings().max_connections;
  if (max_connections == 0) return Queue::start(number);
  if (number < max_connections) queues_.push_back(Queue::start(number));
  return queues_[number % max_connections];
}

Ref<Stream> Driver::find_stream(CUstream handle) {
  constexpr uintptr_t kPerThread = 2;  // 0 and 1 are the legacy stream
  if (reinterpret_cast<uintptr_t>(handle) > kPerThread) return streams.find(handle);
  Ref<Stream>& stream = contexts[static_cast<size_t>(current_device())].null_stream;
  if (!stream) {
    stream = make<Stream>(current_device(), next_queue());
    stream->is_null = true;
  }
  return stream;
}

Memory* Driver::find_memory(uint64_t address) {
  auto after = memory.upper_bound(address);
  if (after == memory.begin()) return nullptr;
  Memory& found = (--after)->second;
  return address - found.base < found.bytes ? &found : nullptr;
}

bool Driver::mapped(uint64_t address, size_t bytes) {
  if (const Memory* found = find_memory(address)) return address - found->base + bytes <= found->bytes;
  auto after = registered.upper_bound(address);
  if (after == registered.begin()) return false;
  const auto& [base, size] = *--after;
  return address - base + bytes <= size;
}

CUresult Driver::check_unsafe_call() {
  CUresult result = CUDA_SUCCESS;
  for (const Ref<Capture>& capture : captures) {
    if (capture->mode == CU_STREAM_CAPTURE_MODE_RELAXED) continue;
    if (capture->mode == CU_STREAM_CAPTURE_MODE_THREAD_LOCAL && capture->thread != std::this_thread::get_id()) continue;
    result = spoil(*capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
  }
  return result;
}

}  // namespace fake_cuda
