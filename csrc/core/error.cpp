#include "core/error.h"

namespace pipert::detail {

void fail_check(const char* file, int line, const char* condition, const std::string& message) {
  throw Error(std::string(file) + ":" + std::to_string(line) + ": check failed: " + condition + ": " + message);
}

}  // namespace pipert::detail
