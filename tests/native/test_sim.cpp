// The virtual clock and the figures, on a plan small enough to work out by hand. (tests/unit holds both to an
// independent simulator on random plans.)
#include <cmath>

#include "core/error.h"
#include "expect.h"
#include "hand_plan.h"
#include "sim/clock.h"
#include "sim/explain.h"
#include "sim/figures.h"
#include "sim/noise.h"

namespace {

using namespace pipert;

bool near(double value, double expected) { return std::abs(value - expected) < 1e-9; }

// Forward 1, backward 2, on every stage.
ClockCosts costs_of(const Plan& plan, double latency, double occupancy, double host_cores) {
  ClockCosts costs;
  costs.times[static_cast<size_t>(OpKind::FORWARD)].assign(plan.num_stages, 1);
  costs.times[static_cast<size_t>(OpKind::BACKWARD)].assign(plan.num_stages, 2);
  costs.edge = {latency, occupancy};
  costs.host_cores = host_cores;
  return costs;
}

Figures run(const Plan& plan, const ClockCosts& costs) {
  const Timeline timeline = simulate(plan, costs);
  const std::vector<StageMemory> memory(plan.num_stages, {1, 0, 0});
  return measure(plan, timeline.start, timeline.end, {memory});
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

void test_a_slow_rank_and_a_slow_link() {
  const Plan plan = HandPlan::chain(2, 1);
  for (const double host_cores : {0.0, 1.0}) {  // one microbatch: a core is all that is ever used
    ClockCosts costs = costs_of(plan, 0.25, 0, host_cores);
    costs.rank_speed = {1, 0.5};
    costs.links = {{0, 1, {3, 0.5}}, {5, 6, {9, 9}}};
    costs.scale = {1, 10};
    EXPECT(near(run(plan, costs).makespan, 1 + 3.5 + 10 * 2 * (1 + 2) + 0.25 + 2));
    costs.jitter.assign(plan.num_ops(), 1);
    costs.jitter[HandPlan::find(plan, "0F0")] = 2;
    costs.jitter[HandPlan::find(plan, "0SEND_F0")] = 3;
    EXPECT(near(run(plan, costs).makespan, 2 + 3 * 3.5 + 10 * 2 * (1 + 2) + 0.25 + 2));
  }
}

void test_costs_of_other_sizes() {
  const Plan plan = HandPlan::chain(3, 1);
  ClockCosts costs = costs_of(plan, 0, 0, 0);
  costs.rank_speed = {1};
  EXPECT_THROWS(ConfigError, simulate(plan, costs), "the ranks' speed has 1 entries, expected 3");
  costs.times[static_cast<size_t>(OpKind::FORWARD)] = {1};
  EXPECT_THROWS(ConfigError, simulate(plan, costs), "the cost of F has 1 entries, expected 3");
}

// Two ranks, one microbatch: 0F0 to 1, its message to 1.75, 1F0 to 2.75, 1B0 to 4.75, its message to 5.5, 0B0 to 7.5.
void test_explanation() {
  const Plan plan = HandPlan::chain(2, 1);
  const Timeline timeline = simulate(plan, costs_of(plan, 0.25, 0.5, 0));
  const Explanation explanation = explain(plan, timeline.start, timeline.end);
  const IdleTimes& first = explanation.ranks[0];
  EXPECT(near(first.warm_up, 3.75) && near(first.dependency, 0) && near(first.communication, 0.75));
  EXPECT(near(first.drain, 0) && near(first.overhead, 0));
  const IdleTimes& second = explanation.ranks[1];
  EXPECT(near(second.warm_up, 1) && near(second.communication, 0.75) && near(second.drain, 2.75));
  EXPECT(explanation.critical_path.size() == 6);  // no SEND: the path goes through what arrives
  for (const auto& [op, waited] : explanation.critical_path) EXPECT(near(waited, 0));
  for (const double slack : explanation.slack) EXPECT(near(slack, 0));
}

void test_slack_beside_the_path() {
  const Plan plan = HandPlan::chain(2, 2);
  ClockCosts costs = costs_of(plan, 0, 0, 0);
  costs.rank_speed = {1, 0.25};  // the second rank computes all the time from 1 on: 0F1 has 1 to 5 to arrive in
  const Timeline timeline = simulate(plan, costs);
  const Explanation explanation = explain(plan, timeline.start, timeline.end);
  EXPECT(near(explanation.slack[HandPlan::find(plan, "0F1")], 3));
  EXPECT(near(explanation.slack[HandPlan::find(plan, "0SEND_F1")], 3));
  EXPECT(near(explanation.slack[HandPlan::find(plan, "1RECV_F1")], 3));
  EXPECT(near(explanation.slack[HandPlan::find(plan, "1F1")], 0));
}

void test_noise_is_repeatable() {
  const Plan plan = HandPlan::chain(3, 4);
  const ClockCosts costs = costs_of(plan, 0.25, 0, 0);
  const double quiet = run(plan, costs).makespan;
  EXPECT(near(simulate_noisy(plan, costs, {}, 1, 0, 1)[0].makespan, quiet));
  const auto all = simulate_noisy(plan, costs, {.op_cv = 0.2}, 7, 0, 6),
             last = simulate_noisy(plan, costs, {.op_cv = 0.2}, 7, 4, 2);
  EXPECT(all.size() == 6 && last[1].makespan == all[5].makespan);
  EXPECT(all[0].makespan != all[1].makespan && all[0].makespan != quiet);
}

}  // namespace

int main() {
  test_gpipe();
  test_transfers_take_time();
  test_one_core_for_all();
  test_a_slow_rank_and_a_slow_link();
  test_costs_of_other_sizes();
  test_explanation();
  test_slack_beside_the_path();
  test_noise_is_repeatable();
}
