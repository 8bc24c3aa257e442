// A hardware queue: a thread that does work in the order in which it was pushed. Pushing learns nothing of what the
// thread did, not even for ThreadSanitizer.
#pragma once

#include "work.h"

namespace fake_cuda {

class Queue : public Shared {
 public:
  // `number` seeds the jitter.
  static Ref<Queue> start(uint64_t number);
  ~Queue() override;

  // `progress` advances when the work is done. One caller at a time.
  struct Progress : Shared {
    Count done;
  };
  void push(Work work, Ref<Progress> progress);
  // The thread ends when it has done what was pushed before.
  void close() { push(nullptr, {}); }

 private:
  struct Item {
    Work work;
    Ref<Progress> progress;
    std::atomic<Item*> next{nullptr};
  };

  explicit Queue(uint64_t number);
  void loop();
  Item* await_next(const Item& item) noexcept;

  Jitter jitter_;
  Item* first_;  // the thread's; done already
  Item* last_;   // the pusher's
  std::atomic<uint32_t> pushed_{0};
};

}  // namespace fake_cuda
