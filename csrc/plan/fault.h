// How the verifier says what is wrong: the rank, the op, what was expected and what was found.
#pragma once

#include <cstdint>
#include <string>

#include "plan/plan.h"

namespace pipert {

std::string name_of(const Plan& plan, int32_t op);
std::string name_of(const Lane& lane);

// Throw PlanError.
[[noreturn]] void fail(int32_t rank, const std::string& op, const std::string& what);
[[noreturn]] void fail(const Plan& plan, int32_t op, const std::string& expected, const std::string& found);

// Throws PlanError unless `op` has an explicit dependency on `needed`, or on a later op of the same lane.
void check_waits(const Plan& plan, int32_t op, int32_t needed, const char* why);

}  // namespace pipert
