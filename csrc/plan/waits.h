// What the lanes of a plan have waited for, row by row.
#pragma once

#include <cstdint>
#include <map>
#include <utility>

#include "plan/plan.h"

namespace pipert {

class Waits {
 public:
  explicit Waits(const Plan& plan) : plan_(plan) {}

  // Takes the dependencies of the next row.
  void take(int32_t op);

  // Throws PlanError unless `op`, or an earlier op of its lane, waits for `needed` or for a later op of that lane. On
  // one lane the order is enough. Requires that the rows up to `op` have been taken.
  void require(int32_t op, int32_t needed, const char* why) const;

 private:
  const Plan& plan_;
  std::map<std::pair<int32_t, int32_t>, int32_t> last_;  // of two lanes: of the second, what the first waits for
};

}  // namespace pipert
