// Why a rank computes nothing.
#pragma once

#include <cstdint>
#include <span>

#include "plan/plan.h"

namespace pipert {

// From the start of the first compute op or collective of any rank to the end of the last.
struct Window {
  double first;
  double last;
};

Window window_of(const Plan& plan, std::span<const double> start, std::span<const double> end);

// Of the time from idle_from to idle_to, the start of the compute op, in which the rank computes nothing.
struct Gap {
  double communication = 0;  // an input was made, but had not arrived and been noticed; or a collective was on its way
  double dependency = 0;     // something that it needs was not made yet
  double overhead = 0;       // all was there before idle_from
};

Gap explain_gap(const Plan& plan, std::span<const double> end, int32_t op, double idle_from, double idle_to);

}  // namespace pipert
