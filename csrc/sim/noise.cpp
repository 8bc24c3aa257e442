#include "sim/noise.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/random.h"
#include "sim/clock.h"
#include "sim/idle.h"

namespace pipert {
namespace {

void fill_lognormal(std::vector<double>& factors, double cv, Random& random) {
  const double variance = std::log1p(cv * cv), deviation = std::sqrt(variance);
  const auto factor = [&](double normal) { return std::exp(deviation * normal - variance / 2); };
  for (size_t i = 0; i < factors.size(); i += 2) {  // two independent normals at a time (Box and Muller)
    const double radius = std::sqrt(-2 * std::log(1 - random.unit()));
    const double angle = 2 * std::numbers::pi * random.unit();
    factors[i] = factor(radius * std::cos(angle));
    if (i + 1 < factors.size()) factors[i + 1] = factor(radius * std::sin(angle));
  }
}

NoisyStep summary_of(const Plan& plan, const Timeline& timeline) {
  const auto [first, last] = window_of(plan, timeline.start, timeline.end);
  NoisyStep step{last - first, 0, 0};
  for (size_t lane = 0; lane < plan.lanes.size(); ++lane) {
    const std::vector<int32_t>& ops = plan.lane_ops[lane];
    if (plan.lanes[lane].kind != LaneKind::COMPUTE || ops.empty()) continue;
    double compute_time = 0;
    for (const int32_t op : ops) compute_time += timeline.end[op] - timeline.start[op];
    step.largest_compute_time = std::max(step.largest_compute_time, compute_time);
    step.longest_rank_span = std::max(step.longest_rank_span, timeline.end[ops.back()] - timeline.start[ops.front()]);
  }
  return step;
}

}  // namespace

std::vector<NoisyStep> simulate_noisy(const Plan& plan, ClockCosts costs, const Variation& variation, uint64_t seed,
                                      uint64_t first_step, size_t num_steps) {
  costs.jitter.resize(plan.num_ops());
  if (costs.rank_speed.empty()) costs.rank_speed.assign(plan.num_ranks, 1.0);
  std::vector<NoisyStep> steps;
  for (uint64_t step = first_step; step < first_step + num_steps; ++step) {
    Random random(Random(seed).next() ^ step);
    double& speed = costs.rank_speed[random.below(plan.num_ranks)];
    const double full_speed = speed;
    speed /= variation.straggler;
    fill_lognormal(costs.jitter, variation.op_cv, random);
    steps.push_back(summary_of(plan, simulate(plan, costs)));
    speed = full_speed;
  }
  return steps;
}

}  // namespace pipert
