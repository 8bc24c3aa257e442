#include "transport/mesh.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <optional>
#include <string_view>

#include "core/clock.h"
#include "core/error.h"
#include "core/log.h"

namespace pipert {
namespace {

constexpr size_t kMaxMessage = 16384;
constexpr size_t kMaxText = 8192;
constexpr size_t kMaxSession = 256;
constexpr int64_t kSliceNs = 50'000'000;
constexpr int64_t kHelloNs = 2'000'000'000;  // a stranger who connects and says nothing holds us up no longer

// The first byte of every message.
constexpr char kHello = 'H';
constexpr char kReject = 'R';
constexpr char kEdge = 'E';
constexpr char kFailed = 'X';
constexpr char kGoodbye = 'G';

struct Hello {
  char magic[8] = {kHello, 'p', 'i', 'p', 'e', 'r', 't', '1'};
  int32_t rank = 0;
  int32_t num_ranks = 0;
  uint64_t fingerprint = 0;
  std::array<char, kMaxSession> session{};
};

std::string system_error(const std::string& what) { return what + ": " + std::strerror(errno); }

Hello hello_of(const MeshAddress& address) {
  Hello hello{.rank = address.rank, .num_ranks = address.num_ranks, .fingerprint = address.fingerprint};
  std::copy(address.session.begin(), address.session.end(), hello.session.begin());
  return hello;
}

std::optional<Hello> parse_hello(std::string_view message) {
  Hello hello;
  if (message.size() != sizeof(Hello)) return std::nullopt;
  std::memcpy(&hello, message.data(), sizeof(Hello));
  if (std::memcmp(hello.magic, Hello{}.magic, sizeof hello.magic) != 0) return std::nullopt;
  return hello;
}

// What speaks against working with whoever sent this hello; empty if nothing does.
std::string objection(const Hello& mine, const Hello& theirs) {
  const std::string who = "ranks " + std::to_string(mine.rank) + " and " + std::to_string(theirs.rank);
  if (mine.session != theirs.session) return who + " belong to different sessions";
  if (mine.num_ranks != theirs.num_ranks) {
    return who + " disagree on the number of ranks (" + std::to_string(mine.num_ranks) + " and " +
           std::to_string(theirs.num_ranks) + ")";
  }
  if (mine.fingerprint != theirs.fingerprint) return who + " were given different plans";
  return {};
}

// An abstract address: it leaves no file behind, and is free again when its socket closes. Sessions may be of any
// form, so a hash stands for them here; the hello compares them in full.
struct SocketAddress {
  sockaddr_un address{};
  socklen_t length = 0;

  SocketAddress(const std::string& session, int32_t rank) {
    const std::string name = "pipert-" + std::to_string(std::hash<std::string>{}(session)) + "-" + std::to_string(rank);
    address.sun_family = AF_UNIX;
    std::copy(name.begin(), name.end(), address.sun_path + 1);
    length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  }
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&address); }
};

UniqueFd new_socket() {
  UniqueFd fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) throw TransportError(system_error("cannot make a socket"));
  return fd;
}

ucred credentials(int socket) {
  ucred peer{.pid = 0, .uid = static_cast<uid_t>(-1), .gid = static_cast<gid_t>(-1)};
  socklen_t size = sizeof peer;
  getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size);
  return peer;
}

// Waits until there is something to read (a message, a connection, the end); false when the deadline passed.
bool wait_readable(int fd, int64_t deadline_ns, const Interrupt& interrupt) {
  for (;;) {
    const int64_t left = deadline_ns - now_ns();
    pollfd item{.fd = fd, .events = POLLIN, .revents = 0};
    const int64_t slice_ms = std::clamp<int64_t>(left, 0, kSliceNs) / 1'000'000;
    if (poll(&item, 1, static_cast<int>(slice_ms)) > 0) return true;
    if (left <= 0) return false;
    if (interrupt) interrupt();
  }
}

bool send_message(int fd, std::string_view message) noexcept {
  return send(fd, message.data(), message.size(), MSG_NOSIGNAL | MSG_DONTWAIT) == static_cast<ssize_t>(message.size());
}

struct Received {
  enum { kMessage, kNothing, kEnd } what = kNothing;
  std::string message;
  UniqueFd fd;
};

// The next message that is there. What a peer sent before it died can still be read: a reset is no end yet.
Received receive(int socket) {
  std::array<char, kMaxMessage> buffer;
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control;
  for (;;) {
    iovec part{.iov_base = buffer.data(), .iov_len = buffer.size()};
    msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    header.msg_control = control.data();
    header.msg_controllen = control.size();
    const ssize_t size = recvmsg(socket, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (size < 0 && (errno == EINTR || errno == ECONNRESET)) continue;
    if (size < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return {};
    if (size <= 0) return {.what = Received::kEnd, .message = {}, .fd = {}};
    Received received{.what = Received::kMessage, .message = {buffer.data(), static_cast<size_t>(size)}, .fd = {}};
    for (cmsghdr* c = CMSG_FIRSTHDR(&header); c != nullptr; c = CMSG_NXTHDR(&header, c)) {
      if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(c), sizeof fd);
      received.fd = UniqueFd(fd);
    }
    return received;
  }
}

std::string failed_message(const Failure& failure) {
  const int32_t rank = failure.rank;
  std::string message(1 + sizeof rank, kFailed);
  std::memcpy(message.data() + 1, &rank, sizeof rank);
  return message + failure.text.substr(0, kMaxText);
}

std::optional<Failure> parse_failed(std::string_view message) {
  int32_t rank = 0;
  if (message.size() < 1 + sizeof rank || message[0] != kFailed) return std::nullopt;
  std::memcpy(&rank, message.data() + 1, sizeof rank);
  return Failure{
      .kind = FailureKind::kPeerLost, .rank = rank, .op = {}, .text = std::string(message.substr(1 + sizeof rank))};
}

}  // namespace

Mesh::Mesh(MeshAddress address, int64_t deadline_ns, const Interrupt& interrupt)
    : address_(std::move(address)),
      process_(getpid()),
      sockets_(address_.num_ranks),
      processes_(address_.num_ranks),
      left_(new std::atomic<bool>[address_.num_ranks]()),
      stop_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  if (!stop_) throw TransportError(system_error("cannot make an event"));
  if (address_.session.empty() || address_.session.size() > kMaxSession) {
    throw ConfigError("a session has 1 to " + std::to_string(kMaxSession) + " bytes");
  }
  const SocketAddress here(address_.session, address_.rank);
  const UniqueFd listener = new_socket();
  if (bind(listener.get(), here.get(), here.length) != 0 || listen(listener.get(), address_.num_ranks) != 0) {
    throw TransportError(system_error("rank " + std::to_string(address_.rank) +
                                      " cannot listen (does another process "
                                      "run as the same rank of the same session?)"),
                         {.rank = address_.rank});
  }
  // Each rank calls the lower ones and is then called by the higher ones: rank 0 only answers, so nobody waits in a
  // circle.
  for (int32_t peer = 0; peer < address_.rank; ++peer) connect_down(peer, deadline_ns, interrupt);
  accept_up(listener.get(), deadline_ns, interrupt);
  for (int32_t peer = 0; peer < address_.num_ranks; ++peer) {
    const pid_t pid = peer == address_.rank ? 0 : credentials(sockets_[peer].get()).pid;
    if (pid > 0) processes_[peer] = UniqueFd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  }
}

Mesh::~Mesh() { close(); }

void Mesh::connect_down(int32_t peer, int64_t deadline_ns, const Interrupt& interrupt) {
  const std::string who = "rank " + std::to_string(address_.rank);
  const std::string whom = "rank " + std::to_string(peer);
  const SocketAddress there(address_.session, peer);
  UniqueFd socket = new_socket();
  while (connect(socket.get(), there.get(), there.length) != 0) {
    if (errno != ECONNREFUSED && errno != EAGAIN && errno != EINTR) {
      throw TransportError(system_error(who + " cannot connect to " + whom), {.rank = peer});
    }
    if (now_ns() > deadline_ns) throw TransportError(who + " could not reach " + whom + " in time", {.rank = peer});
    if (interrupt) interrupt();
    usleep(2000);
  }
  if (credentials(socket.get()).uid != geteuid()) {
    throw TransportError(whom + "'s address is held by a process of another user", {.rank = peer});
  }
  const Hello mine = hello_of(address_);
  send_message(socket.get(), {reinterpret_cast<const char*>(&mine), sizeof mine});
  if (!wait_readable(socket.get(), deadline_ns, interrupt)) {
    throw TransportError(who + " got no answer from " + whom + " in time", {.rank = peer});
  }
  const Received answer = receive(socket.get());
  if (!answer.message.empty() && answer.message[0] == kReject) {
    throw TransportError(answer.message.substr(1), {.rank = peer});
  }
  const std::optional<Hello> theirs = parse_hello(answer.message);
  if (!theirs) throw TransportError(whom + " hung up on " + who + " instead of answering", {.rank = peer});
  const std::string problem = objection(mine, *theirs);
  if (!problem.empty()) throw TransportError(problem, {.rank = peer});
  sockets_[peer] = std::move(socket);
}

void Mesh::accept_up(int listener, int64_t deadline_ns, const Interrupt& interrupt) {
  const Hello mine = hello_of(address_);
  int32_t missing = address_.num_ranks - 1 - address_.rank;
  while (missing > 0) {
    if (!wait_readable(listener, deadline_ns, interrupt)) {
      std::string names;
      for (int32_t peer = address_.rank + 1; peer < address_.num_ranks; ++peer) {
        if (!sockets_[peer]) names += (names.empty() ? "" : ", ") + std::to_string(peer);
      }
      throw TransportError("rank " + std::to_string(address_.rank) + " was not called in time by rank(s) " + names,
                           {.rank = address_.rank});
    }
    UniqueFd socket(accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket || credentials(socket.get()).uid != geteuid()) continue;
    if (!wait_readable(socket.get(), std::min(deadline_ns, now_ns() + kHelloNs), interrupt)) continue;
    const std::optional<Hello> theirs = parse_hello(receive(socket.get()).message);
    if (!theirs) continue;
    std::string problem = objection(mine, *theirs);
    if (problem.empty() && (theirs->rank <= address_.rank || theirs->rank >= address_.num_ranks)) {
      problem = "rank " + std::to_string(theirs->rank) + " should not call rank " + std::to_string(address_.rank);
    }
    if (problem.empty() && sockets_[theirs->rank]) {
      problem = "two processes run as rank " + std::to_string(theirs->rank);
    }
    if (!problem.empty()) {
      send_message(socket.get(), std::string(1, kReject) + problem);
      throw TransportError(problem, {.rank = theirs->rank});
    }
    send_message(socket.get(), {reinterpret_cast<const char*>(&mine), sizeof mine});
    sockets_[theirs->rank] = std::move(socket);
    --missing;
  }
}

void Mesh::pass_fd(int32_t peer, int fd) {
  char type = kEdge;
  iovec part{.iov_base = &type, .iov_len = 1};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  header.msg_control = control.data();
  header.msg_controllen = control.size();
  cmsghdr* c = CMSG_FIRSTHDR(&header);
  c->cmsg_level = SOL_SOCKET;
  c->cmsg_type = SCM_RIGHTS;
  c->cmsg_len = CMSG_LEN(sizeof fd);
  std::memcpy(CMSG_DATA(c), &fd, sizeof fd);
  if (sendmsg(sockets_[peer].get(), &header, MSG_NOSIGNAL) != 1) {
    throw TransportError(system_error("cannot pass memory to rank " + std::to_string(peer)), {.rank = peer});
  }
}

UniqueFd Mesh::take_fd(int32_t peer, int64_t deadline_ns, const Interrupt& interrupt) {
  const std::string who = "rank " + std::to_string(peer);
  if (!wait_readable(sockets_[peer].get(), deadline_ns, interrupt)) {
    throw TransportError(who + " did not pass its memory in time", {.rank = peer});
  }
  Received received = receive(sockets_[peer].get());
  if (!received.fd) throw TransportError(who + " gave up while connecting", {.rank = peer});
  return std::move(received.fd);
}

void Mesh::watch(FailureFlag& failure) {
  thread_ = BackgroundThread("pipert-watch", [this, &failure] { watch_loop(failure); });
}

void Mesh::watch_loop(FailureFlag& failure) noexcept {
  std::vector<int32_t> peers;
  for (int32_t peer = 0; peer < address_.num_ranks; ++peer) {
    if (sockets_[peer]) peers.push_back(peer);
  }
  std::vector<pollfd> items;
  for (;;) {
    items.assign(1, {.fd = stop_.get(), .events = POLLIN, .revents = 0});
    for (const int32_t peer : peers) {
      items.push_back({.fd = sockets_[peer].get(), .events = POLLIN, .revents = 0});
      items.push_back({.fd = processes_[peer].get(), .events = POLLIN, .revents = 0});  // -1 is skipped by poll
    }
    if (poll(items.data(), items.size(), -1) < 0 && errno != EINTR) {
      log_warning(system_error("the watchdog stopped: poll"));
      return;
    }
    if (items[0].revents != 0) return;
    std::vector<int32_t> still;
    for (size_t index = 0; index < peers.size(); ++index) {
      const int32_t peer = peers[index];
      bool there = true;
      if (items[1 + 2 * index].revents != 0 || items[2 + 2 * index].revents != 0) there = listen_to(peer, failure);
      if (there && (items[2 + 2 * index].revents & POLLIN) != 0) {
        failure.raise(
            {.kind = FailureKind::kPeerLost, .rank = peer, .op = {}, .text = "rank " + std::to_string(peer) + " died"});
        there = false;
      }
      if (there) still.push_back(peer);
    }
    peers = std::move(still);
  }
}

// Reads what a peer has to say; false when that was its last word.
bool Mesh::listen_to(int32_t peer, FailureFlag& failure) {
  for (;;) {
    const Received received = receive(sockets_[peer].get());
    if (received.what == Received::kNothing) return true;
    if (received.what == Received::kEnd) {
      failure.raise(
          {.kind = FailureKind::kPeerLost, .rank = peer, .op = {}, .text = "rank " + std::to_string(peer) + " died"});
      return false;
    }
    if (received.message[0] == kGoodbye) {
      left_[peer].store(true, std::memory_order_seq_cst);
      return false;
    }
    std::optional<Failure> failed = parse_failed(received.message);
    if (failed) failure.raise(std::move(*failed));
  }
}

void Mesh::send_all(const std::string& message) noexcept {
  if (getpid() != process_) return;
  for (const UniqueFd& socket : sockets_) {
    if (socket) send_message(socket.get(), message);
  }
}

void Mesh::tell(const Failure& failure) noexcept {
  const std::lock_guard lock(send_mutex_);
  if (told_ || closed_) return;
  told_ = true;
  send_all(failed_message(failure));
}

void Mesh::close() noexcept {
  {
    const std::lock_guard lock(send_mutex_);
    if (closed_) return;
    closed_ = true;
    send_all(std::string(1, kGoodbye));
  }
  thread_.join([this] {
    const uint64_t one = 1;
    if (write(stop_.get(), &one, sizeof one) != sizeof one) log_warning(system_error("cannot stop the watchdog"));
  });
  for (UniqueFd& socket : sockets_) socket.reset();
  for (UniqueFd& process : processes_) process.reset();
}

}  // namespace pipert
