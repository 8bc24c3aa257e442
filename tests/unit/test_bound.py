"""Lower bounds: never above what a search of all orders, or CP-SAT, finds; and tight where the optimum is known."""

from __future__ import annotations

import itertools
import random

import pytest

import pipert
from pipert import Costs, Program
from pipert.activation import peak_activation
from pipert.costs import Link, StageCosts
from pipert.errors import ConfigError
from pipert.ir import Op
from pipert.passes import recompute
from pipert.solve.bound import lower_bound

EPSILON = 1e-9


def placed(paths, path_of, num_ranks):
    """A placement with its ops in some order."""
    ranks = [[] for _ in range(num_ranks)]
    for mb, path in enumerate(path_of):
        for text, stages in (("F", range(len(paths[0]))), ("I", reversed(range(len(paths[0]))))):
            for stage in stages:
                ranks[paths[path][stage]].append(Op.parse(f"{stage}{text}{mb}"))
                if text == "I":
                    ranks[paths[path][stage]].append(Op.parse(f"{stage}W{mb}"))
    return Program("placed", paths, path_of, tuple(map(tuple, ranks)))


def best_of_all_orders(program, costs, limit, joined=False):
    """The least makespan and longest span over every order of every rank's ops; a clock and a memory of its own."""
    stages, speed = costs.for_plan(program), costs.rank_speed or (1.0,) * program.num_ranks
    last = program.num_stages - 1

    def fits(order):
        held = 0.0
        for kind, stage, _ in order:
            cost = stages[stage]
            held += cost.act if kind == "F" else 0.0
            if held > limit * (1 + 1e-9):
                return False
            held -= {"F": 0.0, "I": cost.act - cost.act_w, "W": cost.act_w, "B": cost.act}[kind]
        return True

    def orders(rank):
        kinds = "FB" if joined else "FIW"
        cells = [(s, mb) for mb in range(program.num_microbatches) for s in program.chunks(rank)]
        cells = [(s, mb) for s, mb in cells if program.rank_of(s, mb) == rank]
        slots = [cell for cell in cells for _ in kinds]
        for arrangement in set(itertools.permutations(slots)):
            left = {cell: iter(kinds) for cell in cells}
            order = [(next(left[cell]), *cell) for cell in arrangement]
            if fits(order):
                yield order

    def clock(ranks):
        end, now, first = {}, [0.0] * len(ranks), [None] * len(ranks)
        todo = [list(order) for order in ranks]
        while any(todo):
            moved = False
            for rank, ops in enumerate(todo):
                while ops:
                    kind, s, mb = ops[0]
                    if kind == "F":
                        needs = [("F", s - 1, mb)] if s else []
                    elif kind == "W":
                        needs = [("G", s, mb)]
                    else:
                        needs = [("F", s, mb), *([("G", s + 1, mb)] if s < last else [])]
                    if any(need not in end for need in needs):
                        break
                    start = now[rank]
                    for need in needs:
                        source = program.rank_of(*need[1:])
                        start = max(start, end[need] + (sum(costs.transfer(source, rank)) if source != rank else 0.0))
                    cost = stages[s]
                    scale = cost.microbatch_scale[mb] if cost.microbatch_scale else 1.0
                    length = {"F": cost.F, "I": cost.I, "W": cost.W, "B": cost.full_backward}[kind]
                    first[rank] = start if first[rank] is None else first[rank]
                    now[rank] = end["G" if kind in "IB" else kind, s, mb] = start + length * scale / speed[rank]
                    ops.pop(0)
                    moved = True
            if not moved:
                return None
        return max(now), max(stop - (start or 0.0) for stop, start in zip(now, first, strict=True))

    figures = [clock(ranks) for ranks in itertools.product(*(list(orders(r)) for r in range(program.num_ranks)))]
    figures = [figure for figure in figures if figure is not None]
    return min(figure[0] for figure in figures), min(figure[1] for figure in figures)


def random_stage(rng, num_microbatches=0):
    act = rng.uniform(0.5, 2)
    times = {kind: rng.choice([0.0, rng.uniform(0.2, 2), rng.uniform(0.2, 2)]) for kind in "FIW"}
    times["B"] = rng.choice([None, None, rng.uniform(0, 4)])
    scale = tuple(rng.choice([0.5, 1, 2]) for _ in range(num_microbatches))
    return StageCosts(**times, act=act, act_w=act * rng.choice([0, rng.random(), 1]), microbatch_scale=scale)


PLACEMENTS = [
    (((0, 1),), (0, 0), 2),
    (((0, 1, 2),), (0,), 3),
    (((0, 1, 1, 0),), (0,), 2),
    (((0, 1, 0, 1),), (0,), 2),
    (((0, 1), (1, 0)), (0, 1), 2),
    (((1, 0, 1),), (0,), 2),
]


@pytest.mark.parametrize(("paths", "path_of", "num_ranks"), PLACEMENTS)
@pytest.mark.parametrize("joined", [False, True])
def test_no_order_is_below_the_bound(paths, path_of, num_ranks, joined):
    rng = random.Random(str((paths, path_of)))
    program = placed(paths, path_of, num_ranks)
    for _ in range(4):
        stages = [random_stage(rng) for _ in paths[0]]
        costs = Costs.per_stage(
            stages,
            p2p=rng.choice([0.0, 0.7]),
            links={(0, 1): Link(latency=1.0)},
            rank_speed=(1.0, 0.5, 2.0)[:num_ranks],
        )
        for limit in (None, rng.uniform(1, 2)):
            if limit is not None:
                limit *= max(
                    sum(stages[s].act for s, r in enumerate(path) if r == rank)
                    for path in paths
                    for rank in range(num_ranks)
                )
            bound = lower_bound(program, costs, limit)
            makespan, span = best_of_all_orders(program, costs, limit or 1e9, joined)
            assert bound.makespan <= makespan * (1 + EPSILON)
            assert bound.longest_rank_span <= span * (1 + EPSILON)


@pytest.mark.parametrize(("size", "limit"), [((2, 5), 1), ((2, 6), 2), ((3, 6), 2), ((4, 7), 3), ((3, 5), None)])
@pytest.mark.parametrize("goal", ["makespan", "longest_rank_span"])
def test_cp_sat_is_not_below_the_bound(size, limit, goal):
    pytest.importorskip("ortools")
    from pipert.solve.job_shop import JobShop
    from pipert.solve.optimal import _Search
    from pipert.solve.problem import Problem

    rng = random.Random(f"{size}{limit}{goal}")
    num_ranks, num_microbatches = size
    program = placed((tuple(range(num_ranks)),), (0,) * num_microbatches, num_ranks)
    for _ in range(3):
        stages = [
            StageCosts(**{kind: rng.randint(1, 6) for kind in "FIW"}, act=4, act_w=rng.randint(0, 4))
            for _ in range(num_ranks)
        ]
        costs = Costs.per_stage(stages, p2p=rng.randint(0, 2))
        memory_limit = None if limit is None else 4.0 * limit + rng.randint(0, 3)
        shop = JobShop(Problem.of(program, costs, memory_limit))
        search = _Search(shop, goal, 0.0)
        starts, proven = search.run(3.0, 0, lambda _: True)
        assert starts is not None
        found = max(starts[op] + shop.durations[op] for op in starts) * shop.quantum
        if goal == "longest_rank_span":
            found = max(
                max(starts[op] + shop.durations[op] for op in starts if shop.rank_of(op) == rank)
                - min(starts[op] for op in starts if shop.rank_of(op) == rank)
                for rank in range(num_ranks)
            )
        assert getattr(lower_bound(program, costs, memory_limit), goal) <= found * (1 + EPSILON)
        assert proven <= found * (1 + EPSILON)


OF_ONE_ORDER = [name for name, schedule in pipert.schedules.SCHEDULES.items() if not schedule.from_costs]


@pytest.mark.parametrize("name", OF_ONE_ORDER)
def test_no_schedule_is_below_the_bound(name):
    rng = random.Random(name)
    for _ in range(12):
        num_ranks, num_microbatches = rng.choice([1, 2, 3, 4, 4]), rng.randint(1, 9)
        try:
            program = pipert.schedules.build(name, num_ranks=num_ranks, num_microbatches=num_microbatches)
        except ConfigError:  # it has no order of these sizes
            continue
        costs = Costs.per_stage(
            [random_stage(rng, num_microbatches) for _ in range(program.num_stages)],
            p2p=rng.choice([0, rng.random()]),
            rank_speed=[rng.choice([0.5, 1, 2]) for _ in range(num_ranks)],
            overlap=rng.choice([0.7, 1, 1.2]),
            host_cores=rng.choice([None, 2]),
        )
        peak = max(peak_activation(program, costs))
        for given, limit in ((program, peak), (program, None), (recompute(program, [0]), peak)):
            plan = pipert.compile(given)
            report = pipert.simulate(plan, costs)
            bound = lower_bound(given, costs, limit)
            assert bound.makespan <= report.makespan * (1 + EPSILON)
            assert bound.longest_rank_span <= report.longest_rank_span * (1 + EPSILON)
            assert bound == lower_bound(plan, costs, limit)


@pytest.mark.parametrize(("name", "limit"), [("zb-h1", 8), ("zb-v", 8)])
def test_the_bound_is_reached(name, limit):
    program = pipert.schedules.build(name, num_ranks=8, num_microbatches=16)
    report = pipert.simulate(pipert.compile(program), Costs.per_rank())
    bound = lower_bound(program, Costs.per_rank(), limit)
    assert bound.makespan == pytest.approx(report.makespan)
    assert bound.longest_rank_span == pytest.approx(report.longest_rank_span)


GOLDEN = [
    (8, 24, 18.522, 18.086, 9.337, 0.601, 0.1585),
    (8, 32, 18.513, 18.086, 9.331, 0.626, 0.1242),
    (8, 64, 18.546, 18.097, 9.321, 0.762, 0.0674),
    (16, 48, 11.347, 11.248, 8.132, 0.377, 0.1397),
    (16, 64, 11.307, 11.254, 8.101, 0.379, 0.1088),
    (16, 128, 11.325, 11.308, 8.109, 0.378, 0.0576),
]


@pytest.mark.parametrize(("p", "m", "F", "I", "W", "p2p", "published"), GOLDEN)
def test_zb_1p_as_published_cannot_be_beaten(p, m, F, I, W, p2p, published):  # noqa: E741
    heads, hidden, sequence = (24, 2304, 1024) if p == 8 else (40, 5120, 1024)
    act_w = 32 * hidden / (34 * hidden + 5 * heads * sequence)
    program = pipert.schedules.build("1f1b", num_ranks=p, num_microbatches=m)
    bound = lower_bound(program, Costs.per_rank(F=F, I=I, W=W, p2p=p2p, act_w=act_w), p)
    assert 1 - m * (F + I + W) / bound.longest_rank_span == pytest.approx(published, abs=6e-5)


def test_forwards_alone():
    program = pipert.schedules.forward_only([(0, 1, 2, 3)], (0,) * 6)
    costs = Costs.per_rank(F=2.0)
    report = pipert.simulate(pipert.compile(program), costs)
    bound = lower_bound(program, costs)
    assert (bound.makespan, bound.longest_rank_span) == (report.makespan, report.longest_rank_span)


def test_a_limit_that_no_schedule_keeps():
    program = pipert.schedules.build("zb-v", num_ranks=4, num_microbatches=4)
    with pytest.raises(ConfigError, match="the least limit is 1,"):
        lower_bound(program, Costs.per_rank(), 0.9)
