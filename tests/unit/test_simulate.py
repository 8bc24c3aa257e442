import json
import math
import random
import re

import plain_clock
import pytest
from random_plans import random_costs, random_plans, random_program, with_collectives

import pipert
from pipert import ConfigError, Costs, schedules
from pipert.activation import peak_activation
from pipert.ir import Op, Program
from pipert.sim import StageCosts


def plan_of(name, num_ranks, num_microbatches, num_chunks=None):
    program = schedules.build(name, num_ranks=num_ranks, num_microbatches=num_microbatches, num_chunks=num_chunks)
    return pipert.compile(program)


# The Zero Bubble paper, tables 5 and 6: p, m, (F, I, W), latency (ms); 1F1B, interleaved with 3 chunks, ZB-H1.
PUBLISHED = [
    (8, 24, (18.522, 18.086, 9.337), 0.601, 0.2431, 0.1055, 0.1585),
    (8, 32, (18.513, 18.086, 9.331), 0.626, 0.1985, 0.0818, 0.1242),
    (8, 64, (18.546, 18.097, 9.321), 0.762, 0.1240, 0.0443, 0.0674),
    (16, 48, (11.347, 11.248, 8.132), 0.377, 0.2552, 0.1104, 0.1397),
    (16, 64, (11.307, 11.254, 8.101), 0.379, 0.2082, 0.0852, 0.1088),
    (16, 128, (11.325, 11.308, 8.109), 0.378, 0.1251, 0.0445, 0.0576),
]


@pytest.mark.parametrize(("p", "m", "times", "p2p", "one_f_one_b", "interleaved", "zb_h1"), PUBLISHED)
def test_published_bubbles(p, m, times, p2p, one_f_one_b, interleaved, zb_h1):
    costs = Costs.per_rank(*times, p2p=p2p)
    assert abs(pipert.simulate(plan_of("1f1b", p, m), costs).bubble_rate_span - one_f_one_b) <= 0.00005 + 1e-9
    assert pipert.simulate(plan_of("zb-h1", p, m), costs).bubble_rate_span <= zb_h1 + 0.0005
    # A plain replay of the interleaved schedule is known to be a little above the paper's figure.
    assert 0 <= pipert.simulate(plan_of("interleaved", p, m, 3), costs).bubble_rate_span - interleaved <= 0.004


# The vocabulary-parallelism paper's artifact, 1F1B on 8 A100s, 128 microbatches, vocabulary 256k: F and B of each rank
# (microseconds) and the measured iteration (ms), with the output layer on the last rank and with layers moved to make
# up for it. (Facts; arXiv 2411.05288.)
VOCABULARY = [
    (
        (10572, 10591, 10475, 10725, 10360, 10444, 10381, 36818),
        (25185, 21108, 20737, 21143, 20805, 21030, 20827, 52363),
        11722,
    ),
    (
        (10627, 10656, 10606, 13501, 13327, 13257, 13200, 26019),
        (25401, 21220, 20851, 26906, 26392, 26589, 26431, 30535),
        7599,
    ),
]


@pytest.mark.parametrize(("forward_us", "backward_us", "measured_ms"), VOCABULARY)
def test_an_iteration_measured_on_gpus(forward_us, backward_us, measured_ms):
    stages = [StageCosts(F=F, B=B) for F, B in zip(forward_us, backward_us, strict=True)]
    report = pipert.simulate(plan_of("1f1b", 8, 128), Costs.per_stage(stages, p2p=350))
    assert report.makespan / 1000 == pytest.approx(measured_ms, rel=0.02)


F, B, W = 1.25, 1.75, 0.75
BASE = Costs.per_rank(F=F, I=B - W, W=W)
SIZES = [(1, 3), (2, 4), (3, 6), (4, 8), (4, 12), (6, 24)]


@pytest.mark.parametrize(("p", "m"), SIZES)
@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
def test_bubble_and_peak_of_the_baselines(name, p, m):
    report = pipert.simulate(plan_of(name, p, m), BASE)
    assert report.makespan == pytest.approx(m * (F + B) + (p - 1) * (F + B))
    assert report.bubble_rate == pytest.approx(1 - m / (m + p - 1))
    assert report.compute_times == pytest.approx([m * (F + B)] * p)
    assert max(report.peak_activation) == (m if name == "gpipe" else min(p, m))
    assert report.exposed_comm == (0.0,) * p


@pytest.mark.parametrize(("p", "m"), SIZES)
@pytest.mark.parametrize("v", [2, 3])
def test_bubble_and_peak_of_interleaved(p, m, v):
    report = pipert.simulate(plan_of("interleaved", p, m, v), BASE)
    assert report.makespan == pytest.approx(m * (F + B) + (p - 1) * (F + B) / v)
    assert max(report.peak_activation) == pytest.approx(p + (p - 1) / v)


@pytest.mark.parametrize(("p", "m"), [(2, 4), (3, 6), (4, 8), (4, 12), (6, 24)])
def test_bubble_and_peak_of_zero_bubble(p, m):
    h1 = pipert.simulate(plan_of("zb-h1", p, m), BASE)
    assert h1.longest_rank_span == pytest.approx(m * (F + B) + (p - 1) * (F + B - 2 * W))
    v = pipert.simulate(plan_of("zb-v", p, m), Costs.per_rank())
    assert v.bubble_rate_span == pytest.approx(0)
    for report in (h1, v):
        assert max(report.peak_activation) == pytest.approx(p)


def same(column, expected):
    assert list(column) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("bandwidth", [False, True])
@pytest.mark.parametrize("cores", [None, 1.0, 1.5, 3.0])
def test_an_independent_clock_agrees(bandwidth, cores):
    rng = random.Random(5)
    seed = int(2 * (cores or 0)) + bandwidth
    for plan in random_plans(seed, 50) + random_plans(seed, 25, collectives=True):
        costs = random_costs(rng, plan, bandwidth=bandwidth, cores=cores)
        start, end = plain_clock.run(plan, costs)
        trace = pipert.simulate(plan, costs).trace
        same(trace.start, start)
        same(trace.end, end)


@pytest.mark.parametrize("name", schedules.names())
@pytest.mark.parametrize("cores", [None, 2.0])
def test_an_independent_clock_agrees_on_schedules(name, cores):
    plan = plan_of(name, 4, 8)
    costs = Costs.per_rank(F=1.0, I=1.25, W=0.5, p2p=0.125, bandwidth=16.0, message_bytes=1.0, host_cores=cores)
    start, end = plain_clock.run(plan, costs)
    trace = pipert.simulate(plan, costs).trace
    same(trace.start, start)
    same(trace.end, end)


@pytest.mark.parametrize("name", ["1f1b", "zb-h1", "zb-h2", "interleaved", "zb-v"])
@pytest.mark.parametrize("cores", [None, 2.0])
def test_an_independent_clock_agrees_on_optimizers_without_a_barrier(name, cores):
    made = pipert.passes.post_validation(schedules.build(name, num_ranks=4, num_microbatches=8))
    plan = pipert.compile(made)
    costs = Costs.per_rank(
        F=1, I=1.25, W=0.5, p2p=0.125, bandwidth=16, message_bytes=1, host_cores=cores, opt=0.75, validate=0.5,
        rank_speed=(1, 0.5, 2, 1),
    )  # fmt: skip
    start, end = plain_clock.run(plan, costs)
    trace = pipert.simulate(plan, costs).trace
    same(trace.start, start)
    same(trace.end, end)


def waits_of(plan, end, op, idle_from):
    """(from, to) of what was on its way to a compute op or about it while its rank was idle."""
    for dep in plan.deps[plan.dep_offsets[op] : plan.dep_offsets[op + 1]]:
        begun_by = dep - ("RECV" in plan.op_text[dep])
        causes = plan.deps[plan.dep_offsets[begun_by] : plan.dep_offsets[begun_by + 1]]
        yield max([idle_from, *(end[cause] for cause in causes)]), end[dep]


def length_of_union(intervals):
    covered = 0.0
    reached = -math.inf
    for begin, end in sorted(intervals):
        covered += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return covered


def plain_figures(plan, costs, start, end):
    """Spans, compute times, peaks and exposed waits by their definitions, from the times alone."""
    stages = costs.for_plan(plan)
    figures = []
    for rank in range(plan.num_ranks):
        ops = plan.compute_ops(rank)
        recomputed = {plan.op_text[op].replace("R", "F") for op in ops if "R" in plan.op_text[op]}
        changes = []
        for op in ops:
            for stage, kind, mb in re.findall(r"(\d+)([FBIWR])(\d+)", plan.op_text[op]):
                cost = stages[int(stage)]
                if kind == "R" or (kind == "F" and f"{stage}F{mb}" not in recomputed):
                    changes.append((start[op], 1, cost.act))
                freed = {
                    "B": cost.act - cost.act_kept,
                    "I": cost.act - cost.act_w,
                    "W": cost.act_w - cost.act_kept,
                }
                changes.append((end[op], 0, -freed.get(kind, 0.0)))
        held = [0.0]
        for _, _, change in sorted(changes):
            held.append(held[-1] + change)
        exposed = 0.0
        for before, op in zip((None, *ops), ops):  # noqa: B905
            idle_from = 0.0 if before is None else end[before]
            exposed += length_of_union(waits_of(plan, end, op, idle_from))
        compute = sum(end[op] - start[op] for op in ops)
        figures.append((end[ops[-1]] - start[ops[0]], compute, max(held), exposed))
    return zip(*figures, strict=True)


@pytest.mark.parametrize("bandwidth", [False, True])
def test_figures_by_their_definitions(bandwidth):
    rng = random.Random(6)
    for plan in random_plans(11, 50) + random_plans(11, 25, collectives=True):
        costs = random_costs(rng, plan, bandwidth=bandwidth)
        report = pipert.simulate(plan, costs)
        start, end = plain_clock.run(plan, costs)
        spans, compute, peaks, exposed = plain_figures(plan, costs, start, end)
        same(report.rank_spans, spans)
        same(report.compute_times, compute)
        same(report.peak_activation, peaks)
        same(report.exposed_comm, exposed)
        assert report.makespan == pytest.approx(max(end))
        assert report.longest_rank_span == max(report.rank_spans)
        assert report.bubble_rate == pytest.approx(1 - max(compute) / max(end))
        assert 0 < report.lower_bound.makespan <= report.makespan * (1 + 1e-9)
        assert 0 < report.lower_bound.longest_rank_span <= report.longest_rank_span * (1 + 1e-9)


def test_peaks_follow_from_the_order_alone():
    rng = random.Random(9)
    for _ in range(30):
        plain = random_program(rng)
        for made in (plain, with_collectives(rng, plain)):
            try:
                plan = pipert.compile(made)
            except pipert.PlanError:
                continue
            costs = random_costs(rng, plan)
            same(peak_activation(made, costs), pipert.simulate(plan, costs).peak_activation)


def program(stage_ranks, num_microbatches, *ranks):
    return Program.single_path(
        "test", stage_ranks, num_microbatches, tuple(tuple(map(Op.parse, ops.split())) for ops in ranks)
    )


def test_exposed_comm_is_the_wait_for_what_has_been_made():
    plan = pipert.compile(program((0, 1), 1, "0F0 0B0", "1F0 1B0"))
    report = pipert.simulate(plan, Costs.per_rank(F=1, I=1, W=1, p2p=0.25))
    assert report.exposed_comm == (0.25, 0.25)
    assert report.makespan == 6.5
    bandwidth = Costs.per_rank(F=1, I=1, W=1, p2p=0.25, bandwidth=8.0, message_bytes=4.0)
    assert pipert.simulate(plan, bandwidth).exposed_comm == (0.75, 0.75)


def test_an_overlapped_pair_costs_its_parts_and_holds_both_inputs():
    plan = pipert.compile(program((0,), 2, "0F0 (0F1;0B0)OVERLAP_F_B 0B1"))
    report = pipert.simulate(plan, Costs.per_rank(F=1, B=2.5))
    assert report.makespan == 7.0
    assert report.peak_activation == (2.0,)


def test_recomputation_holds_nothing_before_it():
    plain = program((0,), 3, "0F0 0F1 0F2 0B0 0B1 0B2")
    recomputed = pipert.passes.recompute(plain, [0])
    costs = Costs.per_rank(F=1, B=2, R=0.5, act=4)
    assert pipert.simulate(pipert.compile(plain), costs).peak_activation == (12.0,)
    report = pipert.simulate(pipert.compile(recomputed), costs)
    assert report.peak_activation == (4.0,)
    assert report.makespan == 3 * 3.5


def test_forward_only_holds_one_microbatch():
    plan = pipert.compile(schedules.forward_only([(0, 1)], [0] * 4))
    report = pipert.simulate(plan, Costs.per_rank(F=1, p2p=0))
    assert report.peak_activation == (1.0, 1.0)
    assert report.makespan == 5.0


def test_part_held_for_the_weight_gradient():
    plan = pipert.compile(program((0,), 3, "0F0 0I0 0F1 0I1 0F2 0I2 0W0 0W1 0W2"))
    assert pipert.simulate(plan, Costs.per_rank(act=1, act_w=0.5)).peak_activation == (2.0,)


def test_costs_per_rank_are_spread_over_its_chunks():
    plan = plan_of("zb-v", 2, 4)
    per_rank = Costs.per_rank(F=2, I=4, W=6, p2p=0.5, act=1)
    per_stage = Costs.per_stage([StageCosts(F=1, I=2, W=3, act=0.5)] * 4, p2p=0.5)
    assert pipert.simulate(plan, per_rank).to_dict() == pipert.simulate(plan, per_stage).to_dict()


def test_more_cores_than_ranks_change_nothing():
    plan = plan_of("1f1b", 3, 6)
    alone, shared = (pipert.simulate(plan, Costs.per_rank(p2p=0.1, host_cores=cores)) for cores in (None, 3))
    assert alone.to_dict() == shared.to_dict()


def test_one_core_runs_one_after_another():
    plan = plan_of("gpipe", 4, 4)
    report = pipert.simulate(plan, Costs.per_rank(host_cores=1))
    assert report.makespan == pytest.approx(4 * 4 * 3)


def test_costs_for_other_stages_are_refused():
    with pytest.raises(ConfigError, match="costs are for 3 stages, but plan '1f1b' has 2"):
        pipert.simulate(plan_of("1f1b", 2, 2), Costs.per_stage([StageCosts()] * 3))


def test_report_as_json_and_as_text():
    report = pipert.simulate(plan_of("1f1b", 2, 4), Costs.per_rank(p2p=0.5))
    figures = json.loads(json.dumps(report.to_dict()))
    assert figures["num_ops"] == report.num_ops == 2 * 8 + 2 * 8
    assert figures["bubble_rate"] == report.bubble_rate
    assert 0 < figures["lower_bound"]["makespan"] == report.lower_bound.makespan <= report.makespan * (1 + 1e-9)
    assert pipert.trace.measure(report.trace).lower_bound is None
    tight = pipert.simulate(plan_of("1f1b", 4, 8), Costs.per_rank(), memory_limit=4)
    assert tight.lower_bound.longest_rank_span == pytest.approx(27)  # that of zb-h1
    assert pipert.simulate(tight.trace.plan, Costs.per_rank()).lower_bound.longest_rank_span == pytest.approx(24)
    assert len(figures["peak_activation"]) == 2
    head, bubble, columns, *rows = str(report).splitlines()
    assert head.startswith("1f1b: 2 ranks, 2 stages, 4 microbatches, 32 ops")
    assert f"{report.bubble_rate:.2%}" in bubble
    assert columns.split()[:3] == ["rank", "compute", "span"]
    assert [row.split()[0] for row in rows] == ["0", "1"]
    assert all(math.isfinite(float(cell)) for row in rows for cell in row.split())
