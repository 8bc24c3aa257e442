#include "trace/nvtx.h"

#include <cstdlib>
#include <optional>
#include <string_view>

#include "core/error.h"

namespace pipert {
namespace {

std::optional<bool> choice() {
  const char* const text = std::getenv("PIPERT_NVTX");
  const std::string_view value = text == nullptr ? "" : text;
  if (value.empty()) return std::nullopt;
  if (value != "0" && value != "1") {
    throw ConfigError("PIPERT_NVTX is \"" + std::string(value) +
                      "\": 1 shows ops to NVTX tools, 0 does not; without it they are shown if a tool is attached");
  }
  return value == "1";
}

}  // namespace

NvtxDomain* NvtxDomain::wanted() {
  const std::optional<bool> chosen = choice();
  if (chosen == false) return nullptr;
  NvtxDomain* const domain = get();
  if (domain == nullptr && chosen == true) {
    throw ConfigError("PIPERT_NVTX=1, but this core was built without NVTX: pip install nvidia-nvtx, and build again");
  }
  if (domain == nullptr || chosen == true) return domain;
  return domain->has_tool() ? domain : nullptr;
}

}  // namespace pipert
