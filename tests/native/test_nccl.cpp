// Edges over NCCL, with the fake NCCL and the fake CUDA driver. Each test has a process of its own.

#include <unistd.h>

#include <cstring>
#include <numeric>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "core/clock.h"
#include "core/error.h"
#include "expect.h"
#include "fake_device.h"
#include "process.h"
#include "transport/nccl/nccl_communicator.h"

namespace {

using namespace pipert;
using fake_cuda::CUcontext;
using fake_cuda::CUstream;

const Environment kFakes{{"PIPERT_LIBCUDA", PIPERT_FAKE_CUDA}, {"PIPERT_NCCL", PIPERT_FAKE_NCCL}};

Environment with(Environment more) {
  more.insert(kFakes.begin(), kFakes.end());
  return more;
}

int64_t soon() { return now_ns() + 20'000'000'000; }

NcclCommunicator connect(const nccl::UniqueId& id, int rank) { return NcclCommunicator::create(id, rank, soon(), {}); }

// Device memory, cut into pieces of odd sizes.
struct Message {
  explicit Message(std::vector<size_t> sizes) : sizes(std::move(sizes)), memory(allocate(num_bytes() + 1)) {}

  size_t num_bytes() const { return std::accumulate(sizes.begin(), sizes.end(), size_t{0}); }
  std::vector<NcclBuffer> buffers() const {
    std::vector<NcclBuffer> result;
    uint64_t place = memory;
    for (const size_t size : sizes) {
      result.push_back({at<void>(place), size});
      place += size;
    }
    return result;
  }

  std::vector<size_t> sizes;
  uint64_t memory;
};

const std::vector<std::vector<size_t>> kShapes{{1}, {123, 507}, {0}, {4096, 0, 3, 1}, {(1 << 20) + 7}, {}, {64, 64}};
constexpr int kRounds = 4;

unsigned char value_of(size_t number) { return static_cast<unsigned char>(number * 7 + 1); }

// Each message is written by work that was enqueued before it, and is checked after work enqueued behind it.
void send_messages(NcclCommunicator& edge) {
  const CUstream stream = make_stream();
  const Message gap({1 << 16});
  for (size_t k = 0; k < kRounds * kShapes.size(); ++k) {
    const Message message(kShapes[k % kShapes.size()]);
    OK(fake_cuda::cuMemsetD8Async(gap.memory, 0, gap.num_bytes(), stream));
    OK(fake_cuda::cuMemsetD8Async(message.memory, value_of(k), message.num_bytes(), stream));
    edge.send(message.buffers(), stream, soon(), {});
    OK(fake_cuda::cuMemsetD8Async(message.memory, 0, message.num_bytes(), stream));
  }
  OK(fake_cuda::cuStreamSynchronize(stream));
  EXPECT(!edge.poll());
}

void recv_messages(NcclCommunicator& edge) {
  const CUstream stream = make_stream();
  for (size_t k = 0; k < kRounds * kShapes.size(); ++k) {
    const Message message(kShapes[k % kShapes.size()]);
    const Message copy(message.sizes);
    OK(fake_cuda::cuMemsetD8Async(message.memory, 0, message.num_bytes(), stream));
    edge.recv(message.buffers(), stream, soon(), {});
    OK(fake_cuda::cuMemcpyDtoDAsync_v2(copy.memory, message.memory, message.num_bytes(), stream));
    OK(fake_cuda::cuStreamSynchronize(stream));
    EXPECT(filled(copy.memory, value_of(k), copy.num_bytes()));
    EXPECT(*at<unsigned char>(message.memory + message.num_bytes()) == 0xFF);
  }
  EXPECT(!edge.poll());
}

void messages_between_two_processes() {
  const Pipe ids;
  const pid_t child = start_child([&] {
    use_device();
    NcclCommunicator edge = connect(ids.take<nccl::UniqueId>(), 1);
    recv_messages(edge);
  });
  use_device();
  const nccl::UniqueId id = make_nccl_unique_id();
  ids.put(id);
  NcclCommunicator edge = connect(id, 0);
  send_messages(edge);
  EXPECT(status_of(child) == 0);
}

// Runs `body` on another thread, with the device.
template <class Body>
std::thread beside(Body body) {
  return std::thread([body] {
    use_device();
    body();
  });
}

void messages_between_two_threads() {
  use_device();
  const nccl::UniqueId id = make_nccl_unique_id();
  std::thread sender = beside([&] {
    NcclCommunicator edge = connect(id, 0);
    NcclCommunicator moved = std::move(edge);
    send_messages(moved);
  });
  NcclCommunicator edge = connect(id, 1);
  recv_messages(edge);
  sender.join();
}

void messages_of_a_rank_to_itself() {
  use_device();
  NcclCommunicator edge = NcclCommunicator::create_self_edge(soon(), {});
  const CUstream stream = make_stream();
  for (size_t k = 0; k < kShapes.size(); ++k) {
    const Message from(kShapes[k]);
    const Message to(kShapes[k]);
    OK(fake_cuda::cuMemsetD8Async(from.memory, value_of(k), from.num_bytes(), stream));
    edge.send_to_self(from.buffers(), to.buffers(), stream, soon(), {});
    OK(fake_cuda::cuStreamSynchronize(stream));
    EXPECT(filled(to.memory, value_of(k), to.num_bytes()));
  }
  EXPECT(!edge.poll());
  EXPECT_THROWS(Error, edge.send({}, stream, soon(), {}), "only the source of an edge sends");
  EXPECT_THROWS(Error, edge.recv({}, stream, soon(), {}), "only the destination of an edge receives");
}

// Captured messages go each time the graph is launched.
void messages_of_a_graph() {
  use_device();
  NcclCommunicator edge = NcclCommunicator::create_self_edge(soon(), {});
  const CUstream stream = make_stream();
  const Message from({507});
  const Message to({507});
  OK(fake_cuda::cuStreamBeginCapture_v2(stream, fake_cuda::CU_STREAM_CAPTURE_MODE_RELAXED));
  edge.send_to_self(from.buffers(), to.buffers(), stream, soon(), {});
  fake_cuda::CUgraph graph = nullptr;
  fake_cuda::CUgraphExec exec = nullptr;
  OK(fake_cuda::cuStreamEndCapture(stream, &graph));
  OK(fake_cuda::cuGraphInstantiateWithFlags(&exec, graph, 0));
  for (unsigned char step = 0; step < 3; ++step) {
    OK(fake_cuda::cuMemsetD8Async(from.memory, step, from.num_bytes(), stream));
    OK(fake_cuda::cuGraphLaunch(exec, stream));
    OK(fake_cuda::cuStreamSynchronize(stream));
    EXPECT(filled(to.memory, step, to.num_bytes()));
  }
}

// Two edges between two processes, whose messages cross: each process does one operation at a time.
void crossing_messages_in_one_order() {
  const auto run = [](NcclCommunicator there, NcclCommunicator back, bool first) {
    const CUstream sends = make_stream();
    const CUstream receives = make_stream();
    const Message message({1 << 16});
    const Message answer({1 << 16});
    for (int k = 0; k < 10; ++k) {
      if (first) {
        there.send(message.buffers(), sends, soon(), {});
        back.recv(answer.buffers(), receives, soon(), {});
      } else {
        there.recv(message.buffers(), receives, soon(), {});
        OK(fake_cuda::cuStreamSynchronize(receives));
        back.send(answer.buffers(), sends, soon(), {});
      }
      OK(fake_cuda::cuCtxSynchronize());
    }
  };
  const Pipe ids;
  const pid_t child = start_child([&] {
    use_device();
    NcclCommunicator there = connect(ids.take<nccl::UniqueId>(), 1);
    run(std::move(there), connect(ids.take<nccl::UniqueId>(), 0), false);
  });
  use_device();
  const nccl::UniqueId id = make_nccl_unique_id();
  const nccl::UniqueId id_back = make_nccl_unique_id();
  ids.put(id);
  ids.put(id_back);
  NcclCommunicator there = connect(id, 0);
  run(std::move(there), connect(id_back, 1), true);
  EXPECT(status_of(child) == 0);
}

struct Interrupted {};

void waits_end_at_their_deadline_and_when_interrupted() {
  use_device();
  const nccl::UniqueId id = make_nccl_unique_id();
  const auto brief = [] { return now_ns() + 100'000'000; };
  EXPECT_THROWS(TransportError, NcclCommunicator::create(id, 1, brief(), {}), "connecting over NCCL took too long");
  int calls = 0;
  const Interrupt interrupt = [&] {
    if (++calls == 3) throw Interrupted();
  };
  try {
    NcclCommunicator::create(id, 0, soon(), interrupt);
    EXPECT(false);
  } catch (const Interrupted&) {
  }
  EXPECT(calls == 3);

  std::thread other = beside([&] { const NcclCommunicator edge = connect(id, 1); });  // and never receives
  NcclCommunicator edge = connect(id, 0);
  const Message message({8});
  EXPECT_THROWS(TransportError, edge.send(message.buffers(), make_stream(), brief(), {}),
                "sending over NCCL took too long: is the process at the other end alive?");
  edge.abort();
  other.join();
}

// A receive that hangs, on the host because the peer has not come yet, or on the device because it does not send.
void abort_ends_what_hangs(bool on_device) {
  const CUcontext context = use_device();
  const nccl::UniqueId id = make_nccl_unique_id();
  const CUstream stream = make_stream();
  const Message message({507});
  std::thread peer = beside([&] {
    NcclCommunicator edge = connect(id, 0);
    const Message sent({507});
    if (on_device) edge.send(sent.buffers(), make_stream(), soon(), {});
    usleep(300'000);
    edge.abort();
  });
  NcclCommunicator edge = connect(id, 1);
  if (on_device) {
    edge.recv(message.buffers(), stream, soon(), {});
    edge.recv(message.buffers(), stream, soon(), {});
  }
  std::thread aborter([&] {
    OK(fake_cuda::cuCtxSetCurrent(context));
    usleep(100'000);
    EXPECT(fake_cuda::cuStreamQuery(stream) == (on_device ? fake_cuda::CUDA_ERROR_NOT_READY : fake_cuda::CUDA_SUCCESS));
    edge.abort();
  });
  if (!on_device) {
    EXPECT_THROWS(TransportError, edge.recv(message.buffers(), stream, soon(), {}), "was aborted");
  }
  OK(fake_cuda::cuStreamSynchronize(stream));
  aborter.join();
  EXPECT(edge.poll() == "the NCCL communicator was aborted");
  EXPECT_THROWS(TransportError, edge.recv(message.buffers(), stream, soon(), {}), "receiving over NCCL ended");
  edge.abort();
  peer.join();
}

void abort_ends_a_wait_of_the_host() { abort_ends_what_hangs(false); }
void abort_ends_a_wait_of_the_device() { abort_ends_what_hangs(true); }

template <class Condition>
void await(Condition condition) {
  const int64_t deadline_ns = soon();
  while (!condition()) {
    EXPECT(now_ns() < deadline_ns);
    usleep(1'000);
  }
}

// The receive hangs on the device until the abort; the error is seen before.
void a_peer_that_dies_is_noticed() {
  const Pipe ids;
  const pid_t child = start_child([&] {
    use_device();
    NcclCommunicator edge = connect(ids.take<nccl::UniqueId>(), 0);
    const Message message({8});
    edge.send(message.buffers(), make_stream(), soon(), {});
    _exit(0);
  });
  use_device();
  const nccl::UniqueId id = make_nccl_unique_id();
  ids.put(id);
  NcclCommunicator edge = connect(id, 1);
  const CUstream stream = make_stream();
  const Message message({8});
  edge.recv(message.buffers(), stream, soon(), {});
  try {
    edge.recv(message.buffers(), stream, soon(), {});
  } catch (const TransportError&) {  // when it died before this call
  }
  EXPECT(status_of(child) == 0);
  await([&] { return edge.poll().has_value(); });
  EXPECT(edge.poll()->find("a message over NCCL failed (NCCL 2.28.9): remote process exited") == 0);
  EXPECT_THROWS(TransportError, edge.recv(message.buffers(), stream, soon(), {}), "the peer has gone");
  edge.abort();
  OK(fake_cuda::cuStreamSynchronize(stream));
}

void sizes_that_differ_are_an_error() {
  use_device();
  const nccl::UniqueId id = make_nccl_unique_id();
  const auto fails = [](NcclCommunicator& edge) {
    await([&] { return edge.poll().has_value(); });
    EXPECT(edge.poll()->find("a send and its receive differ in size") != std::string::npos);
    edge.abort();
  };
  std::thread sender = beside([&] {
    NcclCommunicator edge = connect(id, 0);
    edge.send(Message({8}).buffers(), make_stream(), soon(), {});
    fails(edge);
  });
  NcclCommunicator edge = connect(id, 1);
  edge.recv(Message({9}).buffers(), make_stream(), soon(), {});
  fails(edge);
  sender.join();
}

void a_failed_id() {
  EXPECT_THROWS(TransportError, make_nccl_unique_id(), "ncclGetUniqueId failed (NCCL 2.28.9): internal error");
}

void a_failed_init() {
  use_device();
  EXPECT_THROWS(TransportError, NcclCommunicator::create_self_edge(soon(), {}),
                "ncclCommInitRankConfig failed (NCCL 2.28.9): unhandled system error: FAKE_NCCL_FAIL");
  NcclCommunicator::create_self_edge(soon(), {});
}

void a_failed_group() {
  use_device();
  NcclCommunicator edge = NcclCommunicator::create_self_edge(soon(), {});
  const Message message({8});
  EXPECT_THROWS(TransportError, edge.send_to_self(message.buffers(), message.buffers(), make_stream(), soon(), {}),
                "sending over NCCL failed");
}

void a_failed_message() {
  use_device();
  NcclCommunicator edge = NcclCommunicator::create_self_edge(soon(), {});
  const CUstream stream = make_stream();
  const Message from({8});
  const Message to({8});
  edge.send_to_self(from.buffers(), to.buffers(), stream, soon(), {});
  OK(fake_cuda::cuStreamSynchronize(stream));
  EXPECT(!edge.poll());
  edge.send_to_self(from.buffers(), to.buffers(), stream, soon(), {});
  await([&] { return edge.poll().has_value(); });
  EXPECT(fake_cuda::cuStreamQuery(stream) == fake_cuda::CUDA_ERROR_NOT_READY);
  edge.abort();
  OK(fake_cuda::cuStreamSynchronize(stream));
}

void without_a_context() {
  OK(fake_cuda::cuInit(0));
  EXPECT_THROWS(TransportError, NcclCommunicator::create_self_edge(soon(), {}), "no CUDA context is current");
}

// What both ends say where two ranks share a GPU; empty: they connect.
std::string text_of_sharing() {
  use_device();
  const nccl::UniqueId id = make_nccl_unique_id();
  const auto attempt = [](const nccl::UniqueId& id, int rank) -> std::string {
    try {
      connect(id, rank);
      return "";
    } catch (const TransportError& error) {
      return error.what();
    }
  };
  std::string other;
  std::thread peer = beside([&] { other = attempt(id, 0); });
  const std::string own = attempt(id, 1);
  peer.join();
  EXPECT(own == other);
  return own;
}

void an_old_nccl_refuses_to_share_a_gpu() {
  EXPECT(text_of_sharing() ==
         "connecting over NCCL failed (NCCL 2.28.9): invalid usage: Duplicate GPU detected : rank 0 and rank 1 both on "
         "CUDA device 1000. Two ranks on one GPU: NCCL 2.30 and newer allow it with NCCL_MULTI_RANK_GPU_ENABLE=1, and "
         "the ipc transport works on one GPU with any");
}

void a_new_nccl_has_to_be_told_to_share_a_gpu() {
  EXPECT(text_of_sharing().find("(NCCL 2.30.2)") != std::string::npos);
  EXPECT(text_of_sharing().find("this NCCL allows it with NCCL_MULTI_RANK_GPU_ENABLE=1, and") != std::string::npos);
}

void a_new_nccl_shares_a_gpu_when_told() { EXPECT(text_of_sharing().empty()); }

void no_library() {
  EXPECT_THROWS(TransportError, make_nccl_unique_id(),
                "no NCCL: libnccl.so.2 is not loaded in this process (a torch with CUDA loads it when it is imported), "
                "and PIPERT_NCCL does not name a file to open");
}

void no_such_file() {
  EXPECT_THROWS(TransportError, make_nccl_unique_id(),
                "cannot open the NCCL that PIPERT_NCCL names: /nowhere/libnccl.so");
}

void a_library_that_is_no_nccl() {
  EXPECT_THROWS(TransportError, make_nccl_unique_id(), "is not an NCCL of 2.18 or newer: it has no ncclGetVersion");
}

void an_nccl_that_is_too_old() {
  EXPECT_THROWS(TransportError, make_nccl_unique_id(), "is NCCL 2.17.1, and pipert needs 2.18 or newer");
}

#ifdef __SANITIZE_THREAD__
// A message that does not wait for the work that makes it is a race.
void sends_what_another_stream_made(bool waits) {
  use_device();
  NcclCommunicator edge = NcclCommunicator::create_self_edge(soon(), {});
  const CUstream producer = make_stream();
  const CUstream sender = make_stream();
  const Message from({507});
  const Message to({507});
  fake_cuda::CUevent made = nullptr;
  OK(fake_cuda::cuEventCreate(&made, fake_cuda::CU_EVENT_DISABLE_TIMING));
  OK(fake_cuda::cuMemsetD8Async(from.memory, 1, from.num_bytes(), producer));
  OK(fake_cuda::cuEventRecord(made, producer));
  usleep(20'000);  // it has long been done: only the order is missing
  if (waits) OK(fake_cuda::cuStreamWaitEvent(sender, made, 0));
  edge.send_to_self(from.buffers(), to.buffers(), sender, soon(), {});
  OK(fake_cuda::cuStreamSynchronize(sender));
}

void a_missing_wait_is_a_race() {
  constexpr int kRaceFound = 66;
  const int status = status_of(start_child([] {
    EXPECT(std::freopen("/dev/null", "w", stderr) != nullptr);
    sends_what_another_stream_made(false);
  }));
  EXPECT(WEXITSTATUS(status) == kRaceFound);
  sends_what_another_stream_made(true);
}
#endif

}  // namespace

int main() {
  const Environment chaos = with({{"FAKE_CUDA_JITTER_US", "1000"}, {"FAKE_NCCL_IN_PROGRESS", "100"}});
  const Environment at_once = with({{"FAKE_NCCL_IN_PROGRESS", "0"}});
  const Environment serial = with({{"FAKE_NCCL_SERIAL", "1"}, {"FAKE_CUDA_MAX_CONNECTIONS", "1"}});
  for (const Environment& environment : {kFakes, chaos, at_once, serial}) {
    TEST(messages_between_two_processes, environment);
    TEST(messages_of_a_rank_to_itself, environment);
    TEST(messages_of_a_graph, environment);
    TEST(crossing_messages_in_one_order, environment);
  }
  for (const Environment& environment : {kFakes, chaos, at_once}) {
    TEST(messages_between_two_threads, environment);
    TEST(abort_ends_a_wait_of_the_host, environment);
    TEST(abort_ends_a_wait_of_the_device, environment);
  }
  TEST(waits_end_at_their_deadline_and_when_interrupted, kFakes);
  TEST(a_peer_that_dies_is_noticed, kFakes);
  TEST(sizes_that_differ_are_an_error, kFakes);
  TEST(a_failed_id, with({{"FAKE_NCCL_FAIL", "ncclGetUniqueId:1"}}));
  TEST(a_failed_init, with({{"FAKE_NCCL_FAIL", "ncclCommInitRankConfig:1:2"}}));
  for (const char* function : {"ncclGroupStart", "ncclGroupEnd", "ncclSend", "ncclRecv"}) {
    TEST(a_failed_group, with({{"FAKE_NCCL_FAIL", std::string(function) + ":1"}}));
  }
  TEST(a_failed_message, with({{"FAKE_NCCL_FAIL", "async:2:6"}}));
  TEST(without_a_context, kFakes);
  TEST(an_old_nccl_refuses_to_share_a_gpu, with({{"FAKE_NCCL_DUPLICATE", "1"}}));
  const Environment refuses = with({{"FAKE_NCCL_DUPLICATE", "1"}, {"FAKE_NCCL_VERSION", "23002"}});
  Environment shares = refuses;
  shares.emplace("NCCL_MULTI_RANK_GPU_ENABLE", "1");
  TEST(a_new_nccl_has_to_be_told_to_share_a_gpu, refuses);
  TEST(a_new_nccl_shares_a_gpu_when_told, shares);
  TEST(no_library, {{"PIPERT_NCCL", ""}});
  TEST(no_such_file, {{"PIPERT_NCCL", "/nowhere/libnccl.so"}});
  TEST(a_library_that_is_no_nccl, {{"PIPERT_NCCL", PIPERT_FAKE_CUDA}});
  TEST(an_nccl_that_is_too_old, with({{"FAKE_NCCL_VERSION", "21701"}}));
#ifdef __SANITIZE_THREAD__
  TEST(a_missing_wait_is_a_race, kFakes);
#endif
}
