// The virtual clock and the figures, on a plan small enough to work out by hand. (tests/unit holds both to an
// independent simulator on random plans.)
#include <cmath>

#include "core/error.h"
#include "expect.h"
#include "hand_plan.h"
#include "sim/clock.h"
#include "sim/figures.h"

namespace {

using namespace pipert;

bool near(double value, double expected) { return std::abs(value - expected) < 1e-9; }

// Forward 1, backward 2, on every stage.
ClockCosts costs_of(const Plan& plan, double latency, double occupancy, double host_cores) {
  return {std::vector<StageTimes>(plan.num_stages, {1, 2, 1, 1, 1}), latency, occupancy, host_cores};
}

Figures run(const Plan& plan, const ClockCosts& costs) {
  const Timeline timeline = simulate(plan, costs);
  const std::vector<StageMemory> memory(plan.num_stages, {1, 0});
  return measure(plan, timeline.start, timeline.end, memory);
}

void test_gpipe() {
  const Plan plan = HandPlan::chain(3, 4);
  const Figures figures = run(plan, costs_of(plan, 0, 0, 0));
  EXPECT(near(figures.makespan, (4 + 2) * 3));
  for (const RankFigures& rank : figures.ranks) {
    EXPECT(near(rank.compute_time, 12));
    EXPECT(near(rank.peak_activation, 4));
    EXPECT(near(rank.exposed_comm, 0));
  }
}

void test_transfers_take_time() {
  const Plan plan = HandPlan::chain(2, 1);
  const ClockCosts costs = costs_of(plan, 0.25, 0.5, 0);
  const Timeline timeline = simulate(plan, costs);
  const int32_t send = HandPlan::find(plan, "0SEND_F0");
  EXPECT(near(timeline.start[send], 1) && near(timeline.end[send], 1.5));
  EXPECT(near(timeline.start[send + 1], 1) && near(timeline.end[send + 1], 1.75));
  const Figures figures = run(plan, costs);
  EXPECT(near(figures.makespan, 7.5));
  EXPECT(near(figures.ranks[0].exposed_comm, 0.75) && near(figures.ranks[1].exposed_comm, 0.75));
}

void test_one_core_for_all() {
  const Plan plan = HandPlan::chain(4, 8);
  EXPECT(near(run(plan, costs_of(plan, 0, 0, 1)).makespan, 4 * 8 * 3));
  const double almost_enough = run(plan, costs_of(plan, 0.5, 0, 4 - 1e-12)).makespan;
  EXPECT(near(almost_enough, run(plan, costs_of(plan, 0.5, 0, 4)).makespan));
}

void test_costs_for_other_stages() {
  const Plan plan = HandPlan::chain(3, 1);
  EXPECT_THROWS(ConfigError, simulate(plan, {std::vector<StageTimes>(2)}),
                "costs are for 2 stages, but the plan has 3");
}

}  // namespace

int main() {
  test_gpipe();
  test_transfers_take_time();
  test_one_core_for_all();
  test_costs_for_other_stages();
}
