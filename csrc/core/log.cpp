#include "core/log.h"

#include <cstdio>

namespace pipert {

void log_warning(std::string_view message) noexcept {
  std::fprintf(stderr, "pipert: %.*s\n", static_cast<int>(message.size()), message.data());
}

}  // namespace pipert
