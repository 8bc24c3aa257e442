#include "shared.h"

#include <signal.h>
#include <unistd.h>

#include <thread>

namespace fake_cuda {

class Graveyard {
 public:
  Graveyard() {
    start_thread([this] {
      for (;; usleep(10'000)) bury();
    });
  }

  void push(Shared* dead) noexcept {
    dead->next_ = head_.load(std::memory_order_relaxed);
    while (!head_.compare_exchange_weak(dead->next_, dead, std::memory_order_release, std::memory_order_relaxed)) {
    }
  }

 private:
  void bury() noexcept {
    Shared* dead = head_.exchange(nullptr, std::memory_order_acquire);
    while (dead != nullptr) {
      Shared* const next = dead->next_;
      static_cast<void>(dead->references_.load(std::memory_order_acquire));  // after every drop
      delete dead;
      dead = next;
    }
  }

  std::atomic<Shared*> head_{nullptr};
};

void Shared::drop() noexcept {
  static auto* const graveyard = new Graveyard;  // never destroyed: threads outlive main()
  if (references_.fetch_sub(1, std::memory_order_release) == 1) graveyard->push(this);
}

void start_thread(std::function<void()> body) {
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  std::thread(std::move(body)).detach();
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

}  // namespace fake_cuda
