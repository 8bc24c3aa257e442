#include "plan/waits.h"

#include <algorithm>

#include "plan/fault.h"

namespace pipert {

void Waits::take(int32_t op) {
  for (const int32_t dep : plan_.deps_of(op)) {
    int32_t& last = last_[{plan_.op_lane[op], plan_.op_lane[dep]}];
    last = std::max(last, dep);
  }
}

void Waits::require(int32_t op, int32_t needed, const char* why) const {
  if (plan_.op_lane[op] == plan_.op_lane[needed]) {
    if (needed < op) return;
    fail(plan_, op, name_of(plan_, needed) + " before it, " + why, "it later");
  }
  const auto last = last_.find({plan_.op_lane[op], plan_.op_lane[needed]});
  if (last == last_.end() || last->second < needed) check_waits(plan_, op, needed, why);
}

}  // namespace pipert
