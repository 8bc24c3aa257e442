// The errors that the core throws. The bindings raise the Python class of the same name (pipert.errors).
#pragma once

#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

namespace pipert {

// What an error is about; each part is optional.
struct ErrorContext {
  std::optional<int> rank = {};
  std::string op = {};  // op text, empty if none
  std::optional<long long> step = {};
};

class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message, ErrorContext context = {})
      : std::runtime_error(message), context_(std::move(context)) {}
  const ErrorContext& context() const noexcept { return context_; }
  // The name of the Python class that stands for this error.
  virtual const char* python_name() const noexcept { return "PipertError"; }

 private:
  ErrorContext context_;
};

#define PIPERT_DEFINE_ERROR(Name, Base)                                 \
  class Name : public Base {                                            \
   public:                                                              \
    using Base::Base;                                                   \
    const char* python_name() const noexcept override { return #Name; } \
  }

PIPERT_DEFINE_ERROR(ConfigError, Error);
PIPERT_DEFINE_ERROR(PlanError, Error);
PIPERT_DEFINE_ERROR(CudaError, Error);
PIPERT_DEFINE_ERROR(TransportError, Error);
PIPERT_DEFINE_ERROR(PeerLost, TransportError);
PIPERT_DEFINE_ERROR(LaneTimeout, Error);
PIPERT_DEFINE_ERROR(AuthError, Error);

#undef PIPERT_DEFINE_ERROR

namespace detail {
[[noreturn]] void fail_check(const char* file, int line, const char* condition, const std::string& message);
}

// A condition that only a bug in pipert can break.
#define PIPERT_CHECK(condition, message)                                       \
  do {                                                                         \
    if (!(condition)) [[unlikely]]                                             \
      ::pipert::detail::fail_check(__FILE__, __LINE__, #condition, (message)); \
  } while (false)

}  // namespace pipert
