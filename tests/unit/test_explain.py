import itertools
import json
import random
import re

import plain_clock
import pytest
from random_plans import random_costs, random_plans
from test_simulate import length_of_union, plan_of, waits_of

import pipert
from pipert import ConfigError, Costs, schedules
from pipert.sim import StageCosts
from pipert.trace import Trace, explain


def steps(seed, count, **options):
    rng = random.Random(seed)
    for plan in random_plans(seed, count // 2) + random_plans(seed, count // 2, collectives=True):
        yield plan, random_costs(rng, plan, **options)


@pytest.mark.parametrize("options", [{}, {"bandwidth": True}, {"bandwidth": True, "cores": 1.5}])
def test_idle_time_is_split_without_rest(options):
    for plan, costs in steps(20, 60, **options):
        report = pipert.simulate(plan, costs)
        trace, idle = report.trace, explain(report.trace).idle
        assert [times.total for times in idle] == pytest.approx([report.makespan - c for c in report.compute_times])
        for rank, times in enumerate(idle):
            assert times.overhead == 0
            assert (times.warm_up, times.drain) == pytest.approx(plain_phases(plan, trace, rank, report.makespan))
            assert times.dependency >= 0
        assert [times.communication for times in idle] == pytest.approx(report.exposed_comm)


def plain_phases(plan, trace, rank, makespan):
    """Idle time up to the first backward and after the last forward, without the waits for what is on its way."""
    ops = plan.compute_ops(rank)
    gaps = []
    for before, op in zip((None, *ops), (*ops, None), strict=True):
        idle_from = 0.0 if before is None else trace.end[before]
        idle_to = makespan if op is None else trace.start[op]
        on_the_way = 0.0 if op is None else length_of_union(waits_of(plan, trace.end, op, idle_from))
        gaps.append(idle_to - idle_from - on_the_way)
    backward = min(i for i, op in enumerate(ops) if re.search(r"\d[BI]\d", plan.op_text[op]))
    forward = max(i for i, op in enumerate(ops) if re.search(r"\dF\d", plan.op_text[op]))
    return sum(gaps[: backward + 1]), sum(gaps[max(forward, backward) + 1 :])


def test_idle_time_of_1f1b_is_warm_up_and_drain():
    plan = plan_of("1f1b", 4, 8)
    for rank, times in enumerate(explain(pipert.simulate(plan, Costs.per_rank(F=1, B=2)).trace).idle):
        # It fills for the F of those before and the B of those after, and drains for the other way round.
        assert (times.warm_up, times.dependency, times.drain) == (6 - rank, 0, 3 + rank)


def test_a_forward_only_step_has_no_backward_to_warm_up_to():
    plan = pipert.compile(schedules.forward_only([(0, 1)], [0] * 3))
    first, second = explain(pipert.simulate(plan, Costs.per_stage([StageCosts(F=2), StageCosts(F=1)])).trace).idle
    assert (first.warm_up, first.dependency, first.drain) == (0, 0, 1)
    assert (second.warm_up, second.dependency, second.drain) == (2, 2, 0)


def test_idle_time_of_a_pipeline_worked_out_by_hand():
    # 0F0 to 1, 1F0 from 1.5 to 2.5, 1B0 to 4.5, 0B0 from 5 to 7.
    program = schedules.build("1f1b", num_ranks=2, num_microbatches=1)
    first, second = explain(pipert.simulate(pipert.compile(program), Costs.per_rank(F=1, B=2, p2p=0.5)).trace).idle
    assert (first.warm_up, first.dependency, first.drain, first.communication) == (3.5, 0, 0, 0.5)
    assert (second.warm_up, second.dependency, second.drain, second.communication) == (1, 0, 2.5, 0.5)


@pytest.mark.parametrize("options", [{}, {"bandwidth": True}, {"bandwidth": True, "cores": 1.5}])
def test_the_critical_path_has_no_gaps(options):
    for plan, costs in steps(21, 60, **options):
        report = pipert.simulate(plan, costs)
        start, end = report.trace.start, report.trace.end
        explanation = explain(report.trace)
        path = explanation.critical_path
        assert start[path[0].op] == 0
        assert end[path[-1].op] == pytest.approx(report.makespan)
        for before, after in itertools.pairwise(path):
            assert after.waited == pytest.approx(start[after.op] - end[before.op], abs=1e-9)
            if not options.get("cores"):
                assert after.waited == pytest.approx(0, abs=1e-9)
        total = sum(step.waited + end[step.op] - start[step.op] for step in path)
        assert total == pytest.approx(report.makespan)
        assert [explanation.slack[step.op] for step in path] == pytest.approx([0] * len(path), abs=1e-9)


@pytest.mark.parametrize("bandwidth", [False, True])
def test_slack_is_what_an_op_can_be_held_up_by(bandwidth):
    """The independent clock, with each op made longer by its slack, and by a little more."""
    held_up = 0
    for plan, costs in steps(22, 12, bandwidth=bandwidth):
        report = pipert.simulate(plan, costs)
        slack = explain(report.trace).slack
        for op in random.Random(1).sample(range(plan.num_ops), min(8, plan.num_ops)):
            if "SEND" in plan.op_text[op] or "RECV" in plan.op_text[op]:
                continue
            for more, longer in ((0.0, False), (0.25, True)):
                _, end = plain_clock.run(plan, costs, {op: slack[op] + more})
                expected = report.makespan + (more if longer else 0.0)
                assert max(end) == pytest.approx(expected), (plan.op_text[op], slack[op], more)
            held_up += slack[op] > 0
    assert held_up > 10


def test_of_a_measured_step_the_rest_is_overhead():
    plan = plan_of("1f1b", 1, 2)
    report = pipert.simulate(plan, Costs.per_rank())
    start, end = report.trace.start, report.trace.end
    for op in range(plan.num_ops):  # every op begins half a unit late
        start[op] += 0.5 * (op + 1)
        end[op] += 0.5 * (op + 1)
    measured = Trace(plan, start, end, ready=start, unit="ns")
    explanation = explain(measured)
    assert explanation.idle[0].overhead == 1.5
    assert [step.waited for step in explanation.critical_path] == [0, 0.5, 0.5, 0.5]
    assert list(explanation.slack) == [0] * plan.num_ops


def test_text_and_json():
    explanation = explain(pipert.simulate(plan_of("1f1b", 3, 40), Costs.per_rank(p2p=0.5)).trace)
    text = str(explanation)
    idle, path = text.split("\n\n")
    assert idle.splitlines()[1].split()[:4] == ["rank", "idle", "warm-up", "dependency"]
    assert "1RECV_F0" in path
    assert path.splitlines()[-1].endswith("more parts: --json lists them")
    figures = json.loads(json.dumps(explanation.to_dict()))
    assert len(figures["critical_path"]) == len(explanation.critical_path)
    assert figures["critical_path"][0] == {"op": "0F0", "rank": 0, "start": 0, "end": 1, "waited": 0}
    assert len(figures["beside"]) == 100
    assert [op["slack"] for op in figures["beside"]] == sorted(op["slack"] for op in figures["beside"])
    assert figures["idle"][0]["total"] == explanation.idle[0].total


def test_a_part_of_a_step_cannot_be_explained():
    trace = pipert.simulate(plan_of("1f1b", 2, 2), Costs.per_rank()).trace
    trace.end[3] = float("nan")
    with pytest.raises(ConfigError, match=r"the trace lacks .* join the records of all ranks"):
        explain(trace)


def test_a_step_that_ran():
    plan = plan_of("zb-h1", 3, 6)
    stages = {stage: pipert.stages.Timed(F=0.2, I=0.2, W=0.2, stage=stage, num_stages=3) for stage in range(3)}
    with pipert.Engine(plan, stages) as engine:
        trace = engine.step().trace
    report, explanation = pipert.trace.measure(trace), explain(trace)
    rest = [report.makespan - compute for compute in report.compute_times]
    assert [times.total for times in explanation.idle] == pytest.approx(rest)
    assert sum(times.overhead for times in explanation.idle) > 0  # one thread ran all ranks
    path = explanation.critical_path
    assert sum(step.waited + trace.end[step.op] - trace.start[step.op] for step in path) == report.makespan
    assert min(explanation.slack) == 0
    costs = Costs.from_trace(trace)  # in ms; sleeping takes a little longer than it should
    assert all(time >= 0.2 for stage in costs.stages for time in (stage.F, stage.I, stage.W))
