#include "link.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace fake_nccl {
namespace {

constexpr int kSocketType = SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK;
constexpr int kLookMs = 20;  // how often those who wait look whether somebody has hung up

struct Address {
  explicit Address(const std::string& name) {
    place.sun_family = AF_UNIX;
    // The leading zero makes it an abstract address: nothing is left in the file system.
    std::memcpy(place.sun_path + 1, name.data(), std::min(name.size(), sizeof place.sun_path - 1));
    bytes = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  }
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&place); }

  sockaddr_un place{};
  socklen_t bytes = 0;
};

bool would_block() noexcept { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

void await(int fd, short events) noexcept {
  pollfd one{.fd = fd, .events = events, .revents = 0};
  ::poll(&one, 1, kLookMs);
}

}  // namespace

bool Link::open(const std::string& address, Hello own) {
  address_ = address;
  own_ = own;
  if (own.rank != 0) return true;
  listener_ = socket(AF_UNIX, kSocketType, 0);
  const Address place(address);
  return bind(listener_, place.get(), place.bytes) == 0 && listen(listener_, 1) == 0;
}

bool Link::make_socket() noexcept {
  if (own_.rank == 0) {
    socket_ = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    return socket_ >= 0;
  }
  const Address place(address_);
  socket_ = socket(AF_UNIX, kSocketType, 0);
  if (::connect(socket_, place.get(), place.bytes) == 0) return true;
  close(socket_);
  socket_ = -1;
  return false;
}

bool Link::connect() {
  if (socket_ < 0 && !make_socket()) return false;
  if (!greeted_) greeted_ = ::send(socket_, &own_, sizeof own_, MSG_NOSIGNAL) == sizeof own_;
  if (!greeted_ || recv(socket_, &peer_, sizeof peer_, MSG_DONTWAIT) != sizeof peer_) return false;
  if (listener_ >= 0) close(listener_);
  listener_ = -1;
  return true;
}

bool Link::meet() {
  constexpr char kStarted = 's';
  char answer = 0;
  if (!told_) told_ = ::send(socket_, &kStarted, 1, MSG_NOSIGNAL) == 1;
  if (told_ && !met_) met_ = recv(socket_, &answer, 1, MSG_DONTWAIT) == 1;
  return met_;
}

bool Link::send(const void* data, size_t bytes) noexcept {
  const auto* place = static_cast<const char*>(data);
  while (bytes > 0 && !hung_up()) {
    const ssize_t sent = ::send(socket_, place, bytes, MSG_NOSIGNAL);
    if (sent >= 0) {
      place += sent;
      bytes -= static_cast<size_t>(sent);
    } else if (would_block()) {
      await(socket_, POLLOUT);
    } else {
      return false;
    }
  }
  return bytes == 0;
}

bool Link::receive(void* data, size_t bytes) noexcept {
  auto* place = static_cast<char*>(data);
  while (bytes > 0 && !hung_up()) {
    const ssize_t received = recv(socket_, place, bytes, 0);
    if (received > 0) {
      place += received;
      bytes -= static_cast<size_t>(received);
    } else if (received < 0 && would_block()) {
      await(socket_, POLLIN);
    } else {
      return false;
    }
  }
  return bytes == 0;
}

// The socket stays open: a stream's thread may be about to use it.
void Link::hang_up() noexcept {
  hung_up_.store(true, std::memory_order_relaxed);
  if (listener_ >= 0) close(listener_);
  listener_ = -1;
  if (socket_ >= 0) shutdown(socket_, SHUT_RDWR);
}

}  // namespace fake_nccl
