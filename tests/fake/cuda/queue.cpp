#include "queue.h"

namespace fake_cuda {

Queue::Queue(uint64_t number) : jitter_(number), first_(new Item), last_(first_) {}

Queue::~Queue() { delete first_; }

Ref<Queue> Queue::start(uint64_t number) {
  const Ref<Queue> queue(new Queue(number));
  start_thread([queue] { queue->loop(); });
  return queue;
}

void Queue::push(Work work, Ref<Progress> progress) {
  Item* const item = new Item{std::move(work), std::move(progress)};
  Item* const before = last_;
  last_ = item;
  before->next.store(item, std::memory_order_release);
  pushed_.fetch_add(1, std::memory_order_release);
  pipert::futex::wake_all(pushed_);
}

Queue::Item* Queue::await_next(const Item& item) noexcept {
  for (;;) {
    const uint32_t pushed = pushed_.load(std::memory_order_acquire);
    if (Item* const next = item.next.load(std::memory_order_acquire)) return next;
    pipert::futex::wait(pushed_, pushed, 100'000'000);
  }
}

void Queue::loop() {
  for (;;) {
    Item* const next = await_next(*first_);
    delete first_;
    first_ = next;
    if (!next->work) return;
    run(next->work, jitter_);
    next->work = nullptr;
    const Ref<Progress> progress = std::move(next->progress);
    progress->done.advance();
  }
}

}  // namespace fake_cuda
