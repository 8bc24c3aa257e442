import math
import random
from array import array

import pytest
from random_plans import random_costs, random_plans
from test_simulate import plan_of, program

import pipert
from pipert import ConfigError, Costs
from pipert.sim import StageCosts
from pipert.trace import Trace

COLLECTIVES = ("unshard", "reshard", "reduce_grad")


def times(stage, names):
    return [getattr(stage, name) for name in names]


def costs_of(num_stages):
    return Costs.per_stage([StageCosts()] * num_stages)


def test_a_simulated_step_gives_its_costs_back():
    stages = [StageCosts(F=1 + stage, I=2, W=3) for stage in range(4)]
    costs = Costs.per_stage(stages, p2p=0.25)
    again = Costs.from_trace(pipert.simulate(plan_of("zb-h1", 4, 8), costs).trace)
    assert again.p2p == pytest.approx(0.25)
    for found, stage in zip(again.stages, stages, strict=True):
        assert times(found, "FIW") == pytest.approx(times(stage, "FIW"))
        assert found.act == 1
    assert Costs.from_trace(pipert.simulate(plan_of("zb-v", 4, 8), costs_of(8)).trace).stages[3].act == 0.5


def test_what_is_calibrated_predicts_the_step():
    rng = random.Random(3)
    for plan in random_plans(seed=30, count=40):
        costs = random_costs(rng, plan)
        plain = Costs.per_stage(
            [StageCosts(F=stage.F, I=stage.I, W=stage.W, B=stage.B, R=stage.R) for stage in costs.stages],
            p2p=0.0,
        )
        report = pipert.simulate(plan, plain)
        assert pipert.simulate(plan, Costs.from_trace(report.trace)).makespan == pytest.approx(report.makespan)


def measured(plan, costs):
    """The trace of a step whose lanes waited from the end of the op before, in nanoseconds."""
    trace = pipert.simulate(plan, costs).trace
    ready, lane_end = array("d", [0.0]) * plan.num_ops, {}
    for op in range(plan.num_ops):
        ready[op] = lane_end.get(plan.op_lane[op], 0.0) * 1e6
        lane_end[plan.op_lane[op]] = trace.end[op]
    start, end = (array("d", [1e6 * time for time in column]) for column in (trace.start, trace.end))
    return Trace(plan, start, end, ready, "ns")


def test_a_measured_step_gives_milliseconds():
    costs = Costs.from_trace(measured(plan_of("1f1b", 3, 6), Costs.per_rank(F=1, B=4, p2p=0.5)))
    assert costs.p2p == pytest.approx(0.5)
    assert times(costs.stages[1], "FB") == pytest.approx([1, 4])
    assert times(costs.stages[1], "IW") == pytest.approx([2, 2])  # unknown: halves


def test_the_median_leaves_one_slow_op_out():
    trace = measured(plan_of("1f1b", 2, 9), Costs.per_rank(F=1, B=2))
    op = trace.plan.op_text.index("1B8")
    trace.end[op] += 50e6
    assert times(Costs.from_trace(trace).stages[1], "B") == pytest.approx([2])


def test_transfers_that_the_receiver_held_up_do_not_count():
    # Rank 1 computes 1F0 for 20 before it can take more than two others in: 1RECV_F3 waits for it.
    plan = pipert.compile(program((0, 1), 4, "0F0 0F1 0F2 0F3 0B0 0B1 0B2 0B3", "1F0 1F1 1F2 1F3 1B0 1B1 1B2 1B3"))
    stages = [StageCosts(F=1, B=1), StageCosts(F=20, B=20)]
    trace = pipert.simulate(plan, Costs.per_stage(stages, p2p=0.25)).trace
    recv = plan.op_text.index("1RECV_F3")
    assert trace.end[recv] - trace.end[plan.op_text.index("0F3")] > 10
    assert Costs.from_trace(trace).p2p == pytest.approx(0.25)


def test_collectives_are_seen():
    plan = pipert.compile(program((0,), 2, "0UNSHARD 0F0 0F1 0RESHARD 0UNSHARD 0B0 0B1 0REDUCE_GRAD"))
    costs = Costs.per_rank(F=1, B=2, unshard=0.5, reshard=0.25, reduce_grad=4)
    assert times(Costs.from_trace(pipert.simulate(plan, costs).trace).stages[0], COLLECTIVES) == [0.5, 0.25, 4]


def test_pairs_give_the_overlap():
    plan = pipert.compile(program((0,), 3, "0F0 (0F1;0B0)OVERLAP_F_B (0F2;0B1)OVERLAP_F_B 0B2"))
    costs = Costs.from_trace(pipert.simulate(plan, Costs.per_rank(F=1, B=3, overlap=0.75)).trace)
    assert (costs.stages[0].F, costs.stages[0].B, costs.overlap) == pytest.approx((1, 3, 0.75))


def test_what_cannot_be_calibrated():
    pairs = pipert.compile(program((0,), 2, "(0F0;0B0)OVERLAP_F_B (0F1;0B1)OVERLAP_F_B"))
    with pytest.raises(ConfigError, match="no forward of stage 0 outside of an overlapped pair"):
        Costs.from_trace(pipert.simulate(pairs, Costs.per_rank()).trace)
    trace = pipert.simulate(plan_of("1f1b", 2, 2), Costs.per_rank()).trace
    trace.end[0] = math.nan
    with pytest.raises(ConfigError, match="the trace lacks"):
        Costs.from_trace(trace)
