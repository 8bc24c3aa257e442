// One line to standard error, for what cannot be thrown (destructors, background threads).
#pragma once

#include <string_view>

namespace pipert {

void log_warning(std::string_view message) noexcept;

}  // namespace pipert
