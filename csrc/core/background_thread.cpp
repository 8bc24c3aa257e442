#include "core/background_thread.h"

#include <pthread.h>
#include <unistd.h>

#include <csignal>
#include <utility>

namespace pipert {

BackgroundThread::BackgroundThread(const std::string& name, std::function<void()> run) : process_(getpid()) {
  sigset_t all;
  sigset_t before;
  sigfillset(&all);  // the new thread inherits the mask
  pthread_sigmask(SIG_SETMASK, &all, &before);
  thread_ = std::make_unique<std::thread>(std::move(run));
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  pthread_setname_np(thread_->native_handle(), name.substr(0, 15).c_str());
}

void BackgroundThread::join(const std::function<void()>& ask_to_end) noexcept {
  if (!thread_) return;
  if (getpid() != process_) {
    static_cast<void>(thread_.release());
    return;
  }
  if (ask_to_end) ask_to_end();
  thread_->join();
  thread_.reset();
}

}  // namespace pipert
