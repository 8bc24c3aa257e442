// The fake CUDA driver keeps the promises that the tests of the engine rely on. Each test has a process of its own: the
// driver reads its settings once.

#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "driver_api.h"
#include "expect.h"
#include "fake_device.h"
#include "process.h"

namespace {

using namespace fake_cuda;

constexpr size_t kBytes = 4096;

uint64_t allocate() { return ::allocate(kBytes); }
bool filled(uint64_t address, unsigned char value) { return ::filled(address, value, kBytes); }
using ::allocate;
using ::filled;

CUevent make_event(unsigned flags = 0) {
  CUevent event = nullptr;
  OK(cuEventCreate(&event, flags));
  return event;
}

uint64_t address_of(const void* place) { return reinterpret_cast<uint64_t>(place); }

void streams_work_in_order_and_the_calls_only_enqueue() {
  use_device();
  const CUstream stream = make_stream();
  const Gate gate;
  const uint64_t from = allocate();
  const uint64_t to = allocate();
  std::vector<unsigned char> host(kBytes, 7);
  gate.hold(stream);
  OK(cuMemcpyHtoDAsync_v2(from, host.data(), kBytes, stream));
  OK(cuMemcpyDtoDAsync_v2(to, from, kBytes, stream));
  OK(cuMemsetD8Async(from, 9, kBytes, stream));
  OK(cuMemcpyAsync(address_of(host.data()), from, kBytes / 2, stream));
  OK(cuMemcpyDtoHAsync_v2(host.data() + kBytes / 2, to, kBytes / 2, stream));
  usleep(20'000);
  EXPECT(cuStreamQuery(stream) == CUDA_ERROR_NOT_READY);
  EXPECT(filled(to, 0xFF));  // new memory is poisoned
  gate.open();
  OK(cuStreamSynchronize(stream));
  OK(cuStreamQuery(stream));
  EXPECT(filled(to, 7) && filled(from, 9));
  EXPECT(filled(address_of(host.data()), 9, kBytes / 2) && filled(address_of(host.data() + kBytes / 2), 7, kBytes / 2));

  const Gate another;
  another.hold(stream);
  static std::atomic<bool> finished{false};
  OK(cuMemsetD8Async(to, 1, kBytes, stream));
  OK(cuLaunchHostFunc(stream, [](void*) { finished = true; }, nullptr));
  OK(cuStreamDestroy_v2(stream));  // what was enqueued is still done
  EXPECT(cuStreamQuery(stream) == CUDA_ERROR_INVALID_HANDLE);
  OK(cuMemsetD8Async(from, 2, kBytes, nullptr));  // the null stream is one of its own
  OK(cuStreamSynchronize(nullptr));
  OK(cuStreamSynchronize(reinterpret_cast<CUstream>(1)));
  OK(cuStreamSynchronize(reinterpret_cast<CUstream>(2)));
  EXPECT(filled(from, 2) && !filled(to, 1));
  another.open();
  while (!finished) usleep(1'000);
  EXPECT(filled(to, 1));
}

void a_wait_is_for_the_record_that_was_enqueued_before_it() {
  use_device();
  const CUstream first = make_stream();
  const CUstream second = make_stream();
  const CUevent event = make_event();
  const uint64_t memory = allocate();
  OK(cuEventQuery(event));
  OK(cuEventSynchronize(event));
  OK(cuStreamWaitEvent(second, event, 0));  // never recorded: nothing to wait for
  OK(cuStreamSynchronize(second));

  const Gate early;
  const Gate late;
  early.hold(first);
  OK(cuMemsetD8Async(memory, 3, kBytes, first));
  OK(cuEventRecord(event, first));
  OK(cuStreamWaitEvent(second, event, 0));
  late.hold(first);
  OK(cuEventRecord(event, first));  // no concern of the wait before
  EXPECT(cuEventQuery(event) == CUDA_ERROR_NOT_READY);
  usleep(10'000);
  EXPECT(cuStreamQuery(second) == CUDA_ERROR_NOT_READY);
  early.open();
  OK(cuStreamSynchronize(second));
  EXPECT(filled(memory, 3));
  EXPECT(cuEventQuery(event) == CUDA_ERROR_NOT_READY);
  OK(cuStreamWaitEvent(second, event, 0));
  OK(cuEventDestroy_v2(event));  // the wait stays
  EXPECT(cuEventQuery(event) == CUDA_ERROR_INVALID_HANDLE);
  EXPECT(cuStreamQuery(second) == CUDA_ERROR_NOT_READY);
  late.open();
  OK(cuCtxSynchronize());
  OK(cuStreamQuery(second));
}

void events_tell_the_time_between_their_records() {
  use_device();
  const CUstream stream = make_stream();
  const CUevent start = make_event();
  const CUevent end = make_event();
  const CUevent untimed = make_event(CU_EVENT_DISABLE_TIMING);
  CUevent refused = nullptr;
  EXPECT(cuEventCreate(&refused, CU_EVENT_INTERPROCESS) == CUDA_ERROR_INVALID_VALUE);
  float milliseconds = 0;
  OK(cuEventRecord(start, stream));
  EXPECT(cuEventElapsedTime(&milliseconds, start, end) == CUDA_ERROR_INVALID_HANDLE);
  const Gate gate;
  OK(cuLaunchHostFunc(stream, [](void*) { usleep(20'000); }, nullptr));
  gate.hold(stream);
  OK(cuEventRecord(end, stream));
  OK(cuEventRecord(untimed, stream));
  EXPECT(cuEventElapsedTime(&milliseconds, start, end) == CUDA_ERROR_NOT_READY);
  gate.open();
  OK(cuEventSynchronize(end));
  OK(cuEventElapsedTime(&milliseconds, start, end));
  EXPECT(milliseconds >= 20 && milliseconds < 10'000);
  OK(cuEventSynchronize(untimed));
  EXPECT(cuEventElapsedTime(&milliseconds, start, untimed) == CUDA_ERROR_INVALID_HANDLE);
  EXPECT(cuEventRecordWithFlags(end, stream, CU_EVENT_RECORD_EXTERNAL) == CUDA_ERROR_INVALID_VALUE);  // no capture
}

void values_are_waited_for_and_written() {
  use_device();
  const CUstream waiter = make_stream();
  const CUstream writer = make_stream();
  const uint64_t flag = allocate(8);
  struct Case {
    uint32_t before, after, value;
    unsigned condition;
  };
  const Case cases[] = {{4, 5, 5, CU_STREAM_WAIT_VALUE_GEQ},
                        {~0U, 3, 2, CU_STREAM_WAIT_VALUE_GEQ},  // the difference counts, not the size
                        {5, 4, 4, CU_STREAM_WAIT_VALUE_EQ},
                        {8, 10, 2, CU_STREAM_WAIT_VALUE_AND},
                        {0xFFFF0000, 0xFFF00000, 0x0000FFFF, CU_STREAM_WAIT_VALUE_NOR},
                        {0, 1, 1, CU_STREAM_WAIT_VALUE_EQ | CU_STREAM_WAIT_VALUE_FLUSH}};
  for (const Case& one : cases) {
    word(flag).store(one.before);
    OK(cuStreamWaitValue32_v2(waiter, flag, one.value, one.condition));
    usleep(2'000);
    EXPECT(cuStreamQuery(waiter) == CUDA_ERROR_NOT_READY);
    OK(cuStreamWriteValue32_v2(writer, flag, one.after, 0));
    OK(cuStreamSynchronize(waiter));
  }
  uint32_t elsewhere = 1;
  EXPECT(cuStreamWaitValue32_v2(waiter, address_of(&elsewhere), 1, 0) == CUDA_ERROR_INVALID_VALUE);  // not registered
  EXPECT(cuStreamWriteValue32_v2(waiter, flag + 2, 1, 0) == CUDA_ERROR_INVALID_VALUE);               // not aligned
  EXPECT(cuStreamWaitValue32_v2(waiter, flag, 1, 4) == CUDA_ERROR_INVALID_VALUE);
}

size_t num_files() {
  return static_cast<size_t>(std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {}));
}

void memory_is_counted_and_goes_away() {
  use_device();
  const size_t files_before = num_files();
  const uint64_t memory = allocate(10'000);
  uint64_t base = 0;
  size_t bytes = 0;
  OK(cuMemGetAddressRange_v2(&base, &bytes, memory + 9'999));
  EXPECT(base == memory && bytes == 10'000);
  EXPECT(cuMemGetAddressRange_v2(&base, &bytes, memory + 10'000) == CUDA_ERROR_INVALID_VALUE);
  EXPECT(filled(memory, 0xFF, 10'000));
  int type = 0;
  OK(cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, memory + 5));
  EXPECT(type == CU_MEMORYTYPE_DEVICE);
  int ordinal = -1;
  OK(cuPointerGetAttribute(&ordinal, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, memory));
  EXPECT(ordinal == 0);
  uint64_t more = 0;
  EXPECT(cuMemAlloc_v2(&more, 10'001) == CUDA_ERROR_OUT_OF_MEMORY);
  EXPECT(cuMemAlloc_v2(&more, 0) == CUDA_ERROR_INVALID_VALUE);
  OK(cuMemFree_v2(memory));
  EXPECT(cuMemFree_v2(memory) == CUDA_ERROR_INVALID_VALUE);
  unsigned char pages[3];
  EXPECT(mincore(at<void>(memory), 10'000, pages) != 0);  // no longer mapped
  EXPECT(num_files() == files_before);
  OK(cuMemAlloc_v2(&more, 20'000));
}

void host_memory_is_registered_once() {
  use_device();
  void* const mapping = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  EXPECT(mapping != MAP_FAILED);
  uint64_t address = 0;
  EXPECT(cuMemHostGetDevicePointer_v2(&address, mapping, 0) == CUDA_ERROR_INVALID_VALUE);
  OK(cuMemHostRegister_v2(mapping, kBytes, 0));
  EXPECT(cuMemHostRegister_v2(static_cast<char*>(mapping) + 64, 64, 0) == CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
  OK(cuMemHostGetDevicePointer_v2(&address, mapping, 0));
  EXPECT(address == address_of(mapping));
  int type = 0;
  OK(cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, address));
  EXPECT(type == CU_MEMORYTYPE_HOST);
  OK(cuStreamWriteValue32_v2(nullptr, address, 5, 0));
  OK(cuStreamSynchronize(nullptr));
  EXPECT(word(address).load() == 5);
  OK(cuMemHostUnregister(mapping));
  EXPECT(cuMemHostUnregister(mapping) == CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
  EXPECT(cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, address) == CUDA_ERROR_INVALID_VALUE);

  void* pinned = nullptr;
  OK(cuMemHostAlloc(&pinned, kBytes, 0));
  EXPECT(cuMemHostRegister_v2(pinned, kBytes, 0) == CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
  OK(cuMemHostGetDevicePointer_v2(&address, pinned, 0));
  EXPECT(address == address_of(pinned));
  OK(cuMemFreeHost(pinned));
  EXPECT(cuMemFreeHost(pinned) == CUDA_ERROR_INVALID_VALUE);
}

void import_and_answer(const Pipe& handles, const Pipe& answers) {
  use_device();
  const auto handle = handles.take<CUipcMemHandle>();
  uint64_t memory = 0;
  uint64_t again = 0;
  EXPECT(cuIpcOpenMemHandle_v2(&memory, handle, 0) == CUDA_ERROR_INVALID_VALUE);
  OK(cuIpcOpenMemHandle_v2(&memory, handle, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS));
  OK(cuIpcOpenMemHandle_v2(&again, handle, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS));
  EXPECT(memory == again);
  OK(cuIpcCloseMemHandle(memory));
  CUipcMemHandle refused;
  EXPECT(cuIpcGetMemHandle(&refused, memory) == CUDA_ERROR_INVALID_VALUE);  // not this process's
  const CUstream stream = make_stream();
  OK(cuStreamWaitValue32_v2(stream, memory, 1, CU_STREAM_WAIT_VALUE_EQ));
  OK(cuMemsetD8Async(memory + 64, 5, kBytes - 64, stream));
  OK(cuStreamWriteValue32_v2(stream, memory + 4, 1, 0));
  OK(cuStreamSynchronize(stream));
  OK(cuIpcCloseMemHandle(memory));
  EXPECT(cuIpcCloseMemHandle(memory) == CUDA_ERROR_INVALID_VALUE);
  answers.put(handles.take<char>());  // once the exporter has freed it
  EXPECT(cuIpcOpenMemHandle_v2(&memory, handle, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS) == CUDA_ERROR_INVALID_HANDLE);
}

void memory_is_shared_between_processes() {
  const Pipe handles;
  const Pipe answers;
  const pid_t importer = start_child([&] { import_and_answer(handles, answers); });
  use_device();
  const uint64_t memory = allocate();
  word(memory).store(0);
  word(memory + 4).store(0);
  CUipcMemHandle handle;
  OK(cuIpcGetMemHandle(&handle, memory + 100));
  uint64_t own = 0;
  EXPECT(cuIpcOpenMemHandle_v2(&own, handle, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS) == CUDA_ERROR_INVALID_CONTEXT);
  EXPECT(cuIpcOpenMemHandle_v2(&own, CUipcMemHandle{}, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS) == CUDA_ERROR_INVALID_VALUE);
  handles.put(handle);
  const CUstream stream = make_stream();
  OK(cuStreamWriteValue32_v2(stream, memory, 1, 0));
  OK(cuStreamWaitValue32_v2(stream, memory + 4, 1, CU_STREAM_WAIT_VALUE_EQ));
  OK(cuStreamSynchronize(stream));
  EXPECT(filled(memory + 64, 5, kBytes - 64));
  OK(cuMemFree_v2(memory));
  handles.put('x');
  EXPECT(answers.take<char>() == 'x');
  EXPECT(status_of(importer) == 0);
}

CUgraphExec instantiate(CUgraph graph) {
  CUgraphExec exec = nullptr;
  OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
  OK(cuGraphDestroy(graph));
  return exec;
}

// Two branches that meet: each waits for something that only the other does, so they must run at once.
void a_captured_fork_and_join_is_replayed_with_its_branches_at_once() {
  use_device();
  const CUstream origin = make_stream();
  const CUstream side = make_stream();
  const CUevent forked = make_event(CU_EVENT_DISABLE_TIMING);
  const CUevent joined = make_event(CU_EVENT_DISABLE_TIMING);
  const uint64_t flags = allocate(8);
  const uint64_t memory = allocate();
  const uint64_t copy = allocate();
  OK(cuMemsetD8Async(flags, 0, 8, origin));
  OK(cuStreamSynchronize(origin));
  static std::atomic<int> calls{0};

  OK(cuStreamBeginCapture_v2(origin, CU_STREAM_CAPTURE_MODE_GLOBAL));
  EXPECT(cuStreamBeginCapture_v2(origin, CU_STREAM_CAPTURE_MODE_GLOBAL) == CUDA_ERROR_ILLEGAL_STATE);
  OK(cuMemsetD8Async(memory, 1, kBytes, origin));
  OK(cuEventRecord(forked, origin));
  OK(cuStreamWaitEvent(side, forked, 0));
  int status = 0;
  OK(cuStreamIsCapturing(side, &status));
  EXPECT(status == CU_STREAM_CAPTURE_STATUS_ACTIVE);
  OK(cuStreamWriteValue32_v2(side, flags, 1, 0));
  OK(cuStreamWaitValue32_v2(side, flags + 4, 1, CU_STREAM_WAIT_VALUE_EQ));
  OK(cuMemcpyDtoDAsync_v2(copy, memory, kBytes, side));
  OK(cuLaunchHostFunc(side, [](void*) { ++calls; }, nullptr));
  OK(cuEventRecord(joined, side));
  OK(cuStreamWaitValue32_v2(origin, flags, 1, CU_STREAM_WAIT_VALUE_EQ));
  OK(cuStreamWriteValue32_v2(origin, flags + 4, 1, 0));
  OK(cuStreamWaitEvent(origin, joined, 0));
  OK(cuMemsetD8Async(flags, 0, 8, origin));
  OK(cuMemsetD8Async(memory, 2, kBytes, origin));
  CUgraph graph = nullptr;
  OK(cuStreamEndCapture(origin, &graph));
  OK(cuStreamIsCapturing(side, &status));
  EXPECT(status == CU_STREAM_CAPTURE_STATUS_NONE);
  CUgraph refused = nullptr;
  EXPECT(cuStreamEndCapture(origin, &refused) == CUDA_ERROR_ILLEGAL_STATE);
  EXPECT(filled(memory, 0xFF) && calls == 0);  // nothing ran yet

  const CUgraphExec exec = instantiate(graph);
  for (int step = 1; step <= 3; ++step) {
    OK(cuGraphLaunch(exec, origin));
    OK(cuStreamSynchronize(origin));
    EXPECT(filled(copy, 1) && filled(memory, 2) && calls == step);
  }

  OK(cuStreamBeginCapture_v2(origin, CU_STREAM_CAPTURE_MODE_GLOBAL));
  OK(cuStreamEndCapture(origin, &graph));
  OK(cuGraphLaunch(instantiate(graph), origin));  // an empty one
  OK(cuStreamSynchronize(origin));
}

void launches_of_a_graph_follow_each_other() {
  use_device();
  const CUstream origin = make_stream();
  const CUstream side = make_stream();
  const CUevent forked = make_event();
  const CUevent joined = make_event();
  const uint64_t memory = allocate();
  const uint64_t copy = allocate();
  OK(cuStreamBeginCapture_v2(origin, CU_STREAM_CAPTURE_MODE_RELAXED));
  OK(cuMemsetD8Async(memory, 1, kBytes, origin));
  OK(cuEventRecord(forked, origin));
  OK(cuStreamWaitEvent(side, forked, 0));
  OK(cuMemcpyDtoDAsync_v2(copy, memory, kBytes, side));
  OK(cuEventRecord(joined, side));
  OK(cuStreamWaitEvent(origin, joined, 0));
  OK(cuMemsetD8Async(memory, 2, kBytes, origin));
  CUgraph graph = nullptr;
  OK(cuStreamEndCapture(origin, &graph));
  const CUgraphExec exec = instantiate(graph);
  for (int step = 0; step < 20; ++step) {
    OK(cuMemsetD8Async(copy, 9, kBytes, origin));
    OK(cuGraphLaunch(exec, origin));
    OK(cuStreamSynchronize(origin));
    EXPECT(filled(copy, 1) && filled(memory, 2));
  }
  OK(cuGraphLaunch(exec, origin));
  OK(cuGraphLaunch(exec, side));  // one after the other, on whatever streams
  OK(cuGraphExecDestroy(exec));   // and they are still done
  EXPECT(cuGraphLaunch(exec, origin) == CUDA_ERROR_INVALID_VALUE);
  OK(cuCtxSynchronize());
}

// What breaks a capture of `origin`: the call's error, and that of the end of the capture.
template <class Break>
void breaks_capture(CUstream origin, CUresult error, CUresult end, Break call) {
  OK(cuStreamBeginCapture_v2(origin, CU_STREAM_CAPTURE_MODE_GLOBAL));
  OK(cuLaunchHostFunc(origin, [](void*) {}, nullptr));
  EXPECT(call() == error);
  if (end == CUDA_ERROR_STREAM_CAPTURE_INVALIDATED) {
    int status = 0;
    OK(cuStreamIsCapturing(origin, &status));
    EXPECT(status == CU_STREAM_CAPTURE_STATUS_INVALIDATED);
    EXPECT(cuLaunchHostFunc(origin, [](void*) {}, nullptr) == CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
  }
  CUgraph graph = reinterpret_cast<CUgraph>(1);
  EXPECT(cuStreamEndCapture(origin, &graph) == end);
  EXPECT(graph == nullptr);
}

void what_a_capture_forbids() {
  use_device();
  const CUstream origin = make_stream();
  const CUstream other = make_stream();
  const CUevent captured = make_event();
  const CUevent outside = make_event();
  OK(cuEventRecord(outside, other));
  OK(cuEventSynchronize(outside));
  constexpr CUresult kUnsupported = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  constexpr CUresult kInvalidated = CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  const auto record = [&] { OK(cuEventRecord(captured, origin)); };

  breaks_capture(origin, kUnsupported, kInvalidated, [&] { return cuStreamSynchronize(origin); });
  breaks_capture(origin, kUnsupported, kInvalidated, [&] { return cuStreamQuery(origin); });
  breaks_capture(origin, kUnsupported, kInvalidated, [&] { return cuCtxSynchronize(); });
  breaks_capture(origin, kUnsupported, kInvalidated, [&] { return record(), cuEventQuery(captured); });
  breaks_capture(origin, kUnsupported, kInvalidated, [&] { return record(), cuEventSynchronize(captured); });
  uint64_t memory = 0;
  breaks_capture(origin, kUnsupported, kInvalidated, [&] { return cuMemAlloc_v2(&memory, 1); });
  breaks_capture(origin, CUDA_ERROR_STREAM_CAPTURE_ISOLATION, kInvalidated,
                 [&] { return cuStreamWaitEvent(origin, outside, 0); });
  breaks_capture(origin, CUDA_SUCCESS, CUDA_ERROR_STREAM_CAPTURE_UNJOINED, [&] {
    record();
    OK(cuStreamWaitEvent(other, captured, 0));
    return cuMemsetD8Async(address_of(&memory), 0, 4, other);
  });
  OK(cuStreamSynchronize(other));  // out of the capture again
  breaks_capture(origin, CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, kInvalidated, [&] {
    record();
    OK(cuStreamWaitEvent(other, captured, 0));
    CUgraph graph = nullptr;
    return cuStreamEndCapture(other, &graph);
  });
  breaks_capture(origin, CUDA_ERROR_STREAM_CAPTURE_MERGE, kInvalidated, [&] {
    OK(cuStreamBeginCapture_v2(other, CU_STREAM_CAPTURE_MODE_RELAXED));
    record();
    const CUresult result = cuStreamWaitEvent(other, captured, 0);
    CUgraph graph = nullptr;
    EXPECT(cuStreamEndCapture(other, &graph) == kInvalidated);
    return result;
  });
  breaks_capture(origin, CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, kInvalidated, [&] {
    CUcontext context = nullptr;
    OK(cuCtxGetCurrent(&context));
    CUresult result = CUDA_SUCCESS;
    std::thread([&] {
      OK(cuCtxSetCurrent(context));
      CUgraph graph = nullptr;
      result = cuStreamEndCapture(origin, &graph);
      EXPECT(cuEventQuery(outside) == kUnsupported);  // forbidden to every thread
    }).join();
    return result;
  });
  EXPECT(cuStreamBeginCapture_v2(nullptr, CU_STREAM_CAPTURE_MODE_RELAXED) == kUnsupported);
}

void events_in_a_capture_are_dependencies_unless_they_are_external() {
  use_device();
  const CUstream origin = make_stream();
  const CUevent inside = make_event();
  const CUevent start = make_event();
  const CUevent end = make_event();
  const CUevent go = make_event();
  OK(cuStreamBeginCapture_v2(origin, CU_STREAM_CAPTURE_MODE_GLOBAL));
  OK(cuEventRecord(inside, origin));
  OK(cuEventRecordWithFlags(start, origin, CU_EVENT_RECORD_EXTERNAL));
  OK(cuLaunchHostFunc(origin, [](void*) { usleep(5'000); }, nullptr));
  OK(cuStreamWaitEvent(origin, go, CU_EVENT_WAIT_EXTERNAL));
  OK(cuEventRecordWithFlags(end, origin, CU_EVENT_RECORD_EXTERNAL));
  CUgraph graph = nullptr;
  OK(cuStreamEndCapture(origin, &graph));
  EXPECT(cuEventQuery(inside) == CUDA_ERROR_CAPTURED_EVENT);
  EXPECT(cuEventSynchronize(inside) == CUDA_ERROR_CAPTURED_EVENT);
  EXPECT(cuStreamWaitEvent(origin, inside, 0) == CUDA_ERROR_CAPTURED_EVENT);
  float milliseconds = 0;
  EXPECT(cuEventElapsedTime(&milliseconds, inside, inside) == CUDA_ERROR_INVALID_HANDLE);
  EXPECT(cuEventElapsedTime(&milliseconds, start, end) == CUDA_ERROR_INVALID_HANDLE);  // no replay yet

  const CUgraphExec exec = instantiate(graph);
  const CUstream other = make_stream();
  for (int step = 0; step < 3; ++step) {
    const Gate gate;
    gate.hold(other);
    OK(cuEventRecord(go, other));
    OK(cuGraphLaunch(exec, origin));
    usleep(10'000);
    EXPECT(cuEventQuery(end) == CUDA_ERROR_NOT_READY);
    OK(cuEventSynchronize(start));
    gate.open();
    OK(cuEventSynchronize(end));
    OK(cuEventElapsedTime(&milliseconds, start, end));
    EXPECT(milliseconds >= 5 && milliseconds < 10'000);
  }
  OK(cuEventRecord(inside, origin));
  OK(cuEventSynchronize(inside));
}

// How often another stream overwrites memory before its source was copied.
int times_too_early(bool waits) {
  const CUstream producer = make_stream();
  const CUstream consumer = make_stream();
  const CUevent event = make_event(CU_EVENT_DISABLE_TIMING);
  const uint64_t memory = allocate();
  const uint64_t copy = allocate();
  int wrong = 0;
  for (unsigned char step = 0; step < 40; ++step) {
    OK(cuMemsetD8Async(memory, step, kBytes, producer));
    OK(cuEventRecord(event, producer));
    if (waits) OK(cuStreamWaitEvent(consumer, event, 0));
    OK(cuMemcpyDtoDAsync_v2(copy, memory, kBytes, consumer));
    OK(cuCtxSynchronize());
    if (!filled(copy, step)) ++wrong;
  }
  return wrong;
}

void chance_shows_a_missing_wait() {
  use_device();
  EXPECT(times_too_early(true) == 0);
#ifndef __SANITIZE_THREAD__
  EXPECT(times_too_early(false) > 5);
#endif
}

void one_connection_is_one_queue() {
  use_device();
  const CUstream first = make_stream();
  const CUstream second = make_stream();
  const Gate gate;
  const uint64_t memory = allocate();
  gate.hold(first);
  OK(cuMemsetD8Async(memory, 1, kBytes, second));
  usleep(20'000);
  EXPECT(cuStreamQuery(second) == CUDA_ERROR_NOT_READY);
  EXPECT(filled(memory, 0xFF));
  gate.open();
  OK(cuStreamSynchronize(second));
  EXPECT(filled(memory, 1));
  OK(cuStreamDestroy_v2(first));
  OK(cuMemsetD8Async(memory, 2, kBytes, second));
  OK(cuStreamSynchronize(second));
}

void the_third_call_fails() {
  use_device();
  uint64_t memory = 0;
  OK(cuMemAlloc_v2(&memory, 8));
  OK(cuMemAlloc_v2(&memory, 8));
  EXPECT(cuMemAlloc_v2(&memory, 8) == CUDA_ERROR_ILLEGAL_ADDRESS);
  OK(cuMemAlloc_v2(&memory, 8));
}

void the_second_record_fails() {
  use_device();
  const CUevent event = make_event();
  OK(cuEventRecord(event, nullptr));
  EXPECT(cuEventRecord(event, nullptr) == CUDA_ERROR_UNKNOWN);
}

void devices_and_contexts() {
  CUdevice device = 0;
  EXPECT(cuDeviceGet(&device, 0) == CUDA_ERROR_NOT_INITIALIZED);
  OK(cuInit(0));
  int version = 0;
  OK(cuDriverGetVersion(&version));
  EXPECT(version == 12080);
  int count = 0;
  OK(cuDeviceGetCount(&count));
  EXPECT(count == 2);
  EXPECT(cuDeviceGet(&device, 2) == CUDA_ERROR_INVALID_DEVICE);
  char name[32];
  OK(cuDeviceGetName(name, sizeof name, 1));
  EXPECT(std::string(name) == "Fake CUDA device");
  int major = 0;
  OK(cuDeviceGetAttribute(&major, 75, 0));
  EXPECT(major == 9);
  CUstream refused = nullptr;
  EXPECT(cuStreamCreateWithPriority(&refused, 0, 0) == CUDA_ERROR_INVALID_CONTEXT);

  const CUcontext first = use_device(0);
  const CUevent event = make_event();
  const CUcontext second = use_device(1);
  EXPECT(first != second);
  OK(cuCtxGetDevice(&device));
  EXPECT(device == 1);
  const CUstream stream = make_stream();
  EXPECT(cuEventRecord(event, stream) == CUDA_ERROR_INVALID_HANDLE);  // another device's
  std::thread([&] {
    CUcontext current = first;
    OK(cuCtxGetCurrent(&current));
    EXPECT(current == nullptr);  // each thread has its own
    EXPECT(cuStreamSynchronize(stream) == CUDA_ERROR_INVALID_CONTEXT);
  }).join();
  int least = 1;
  int greatest = 1;
  OK(cuCtxGetStreamPriorityRange(&least, &greatest));
  EXPECT(least == 0 && greatest < 0);
  OK(cuDevicePrimaryCtxRelease_v2(0));
  EXPECT(cuDevicePrimaryCtxRelease_v2(0) == CUDA_ERROR_INVALID_CONTEXT);
  EXPECT(cuCtxSetCurrent(first) == CUDA_ERROR_INVALID_CONTEXT);
  const char* text = nullptr;
  OK(cuGetErrorName(CUDA_ERROR_NOT_READY, &text));
  EXPECT(std::string(text) == "CUDA_ERROR_NOT_READY");
  OK(cuGetErrorString(CUDA_ERROR_OUT_OF_MEMORY, &text));
  EXPECT(std::string(text) == "out of memory");
  EXPECT(cuGetErrorName(-1, &text) == CUDA_ERROR_INVALID_VALUE);
  OK(cuProfilerStart());
  OK(cuProfilerStop());
}

void without_devices() { EXPECT(cuInit(0) == CUDA_ERROR_NO_DEVICE); }

void host_functions_and_forked_children_may_not_call_the_driver() {
  use_device();
  static std::atomic<int> result{-1};
  OK(cuLaunchHostFunc(nullptr, [](void*) { result = cuStreamQuery(nullptr); }, nullptr));
  OK(cuStreamSynchronize(nullptr));
  EXPECT(result == CUDA_ERROR_NOT_PERMITTED);
  const pid_t child = fork();
  if (child == 0) _exit(cuInit(0) == CUDA_ERROR_NOT_INITIALIZED ? 0 : 1);
  EXPECT(status_of(child) == 0);
}

// The process ends though a stream, a graph's branch and a queue behind them still wait.
void blocked_streams_do_not_keep_a_process() {
  use_device();
  const CUstream stream = make_stream();
  const Gate gate;
  OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_RELAXED));
  gate.hold(stream);
  CUgraph graph = nullptr;
  OK(cuStreamEndCapture(stream, &graph));
  OK(cuGraphLaunch(instantiate(graph), stream));
  gate.hold(make_stream());
  const CUevent event = make_event();
  OK(cuEventRecord(event, stream));
  OK(cuStreamWaitEvent(nullptr, event, 0));
  void* const library = dlopen(PIPERT_FAKE_CUDA, RTLD_NOW | RTLD_LOCAL);
  EXPECT(library != nullptr);
  EXPECT(dlclose(library) == 0);
  usleep(5'000);
}

#ifdef __SANITIZE_THREAD__
// A reader that lacks its wait is a race; with it, by an event or by a value, there is none.
void reads_after(unsigned how) {
  use_device();
  const CUstream producer = make_stream();
  const CUstream consumer = make_stream();
  const CUevent event = make_event(CU_EVENT_DISABLE_TIMING);
  const uint64_t flag = allocate(4);
  word(flag).store(0);
  const uint64_t memory = allocate();
  const uint64_t copy = allocate();
  OK(cuMemsetD8Async(memory, 1, kBytes, producer));
  OK(cuEventRecord(event, producer));
  OK(cuStreamWriteValue32_v2(producer, flag, 1, 0));
  usleep(20'000);  // it has long been done: only the order is missing
  if (how == 1) OK(cuStreamWaitEvent(consumer, event, 0));
  if (how == 2) OK(cuStreamWaitValue32_v2(consumer, flag, 1, 0));
  OK(cuMemcpyDtoDAsync_v2(copy, memory, kBytes, consumer));
  OK(cuStreamSynchronize(consumer));
}

void a_missing_wait_is_a_race() {
  constexpr int kRaceFound = 66;
  const auto status = [](unsigned how) {
    return status_of(start_child([&] {
      if (how == 0) EXPECT(std::freopen("/dev/null", "w", stderr) != nullptr);
      reads_after(how);
    }));
  };
  EXPECT(WEXITSTATUS(status(0)) == kRaceFound);
  EXPECT(status(1) == 0);
  EXPECT(status(2) == 0);
}
#endif

}  // namespace

int main() {
  const Environment chaos{{"FAKE_CUDA_JITTER_US", "2000"}, {"FAKE_CUDA_SEED", "7"}};
  const Environment one_queue{{"FAKE_CUDA_MAX_CONNECTIONS", "1"}};
  for (const Environment& environment : {Environment{}, chaos}) {
    TEST(streams_work_in_order_and_the_calls_only_enqueue, environment);
    TEST(a_wait_is_for_the_record_that_was_enqueued_before_it, environment);
    TEST(memory_is_shared_between_processes, environment);
    TEST(a_captured_fork_and_join_is_replayed_with_its_branches_at_once, environment);
    TEST(events_in_a_capture_are_dependencies_unless_they_are_external, environment);
    TEST(what_a_capture_forbids, environment);
  }
  for (const Environment& environment : {Environment{}, chaos, one_queue}) {
    TEST(launches_of_a_graph_follow_each_other, environment);
    TEST(blocked_streams_do_not_keep_a_process, environment);
  }
  TEST(chance_shows_a_missing_wait, chaos);
  TEST(events_tell_the_time_between_their_records);
  TEST(values_are_waited_for_and_written);
  TEST(memory_is_counted_and_goes_away, {{"FAKE_CUDA_MEMORY_BYTES", "20000"}});
  TEST(host_memory_is_registered_once);
  TEST(one_connection_is_one_queue, one_queue);
  TEST(the_third_call_fails, {{"FAKE_CUDA_FAIL", "cuMemAlloc:3:700"}});
  TEST(the_second_record_fails, {{"FAKE_CUDA_FAIL", "cuEventRecord:2"}});
  TEST(devices_and_contexts, {{"FAKE_CUDA_DEVICES", "2"}, {"FAKE_CUDA_VERSION", "12080"}});
  TEST(without_devices, {{"FAKE_CUDA_DEVICES", "0"}});
  TEST(host_functions_and_forked_children_may_not_call_the_driver);
#ifdef __SANITIZE_THREAD__
  a_missing_wait_is_a_race();
#endif
}
