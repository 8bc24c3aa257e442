// Reference counting that orders nothing. A stream's thread that drops the last reference to something must not come to
// "happen after" everybody who dropped one before: under ThreadSanitizer that would hide a missing wait between
// streams. So dropping never acquires; what nobody holds any more is handed to a thread of its own, which deletes it.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <utility>

namespace fake_cuda {

class Shared {
 public:
  Shared() = default;
  Shared(const Shared&) = delete;
  Shared& operator=(const Shared&) = delete;
  virtual ~Shared() = default;

 private:
  template <class T>
  friend class Ref;
  friend class Graveyard;

  void take() noexcept { references_.fetch_add(1, std::memory_order_relaxed); }
  void drop() noexcept;

  std::atomic<uint32_t> references_{0};
  Shared* next_ = nullptr;  // in the graveyard
};

template <class T>
class Ref {
 public:
  Ref() = default;
  explicit Ref(T* object) noexcept : object_(object) {
    if (object_ != nullptr) object_->take();
  }
  Ref(const Ref& other) noexcept : Ref(other.object_) {}
  Ref(Ref&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  Ref& operator=(Ref other) noexcept {
    std::swap(object_, other.object_);
    return *this;
  }
  ~Ref() {
    if (object_ != nullptr) object_->drop();
  }

  T* get() const noexcept { return object_; }
  T* operator->() const noexcept { return object_; }
  T& operator*() const noexcept { return *object_; }
  explicit operator bool() const noexcept { return object_ != nullptr; }
  bool operator==(const Ref& other) const noexcept { return object_ == other.object_; }

 private:
  T* object_ = nullptr;
};

template <class T, class... Arguments>
Ref<T> make(Arguments&&... arguments) {
  return Ref<T>(new T(std::forward<Arguments>(arguments)...));
}

// Starts a thread that nobody joins and that no signal is delivered to.
void start_thread(std::function<void()> body);

}  // namespace fake_cuda
