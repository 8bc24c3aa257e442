"""The schedule ``optimal``: better than what it starts from, within its limit, accepted by the compiler, proven."""

from __future__ import annotations

import builtins
import random

import program_judge
import pytest

import pipert
from pipert import Costs
from pipert.activation import peak_activation
from pipert.costs import StageCosts
from pipert.errors import ConfigError, PlanError
from pipert.solve.job_shop import JobShop
from pipert.solve.optimal import optimal
from pipert.solve.problem import Problem

pytest.importorskip("ortools")


def build(name, p, m, chunks=None):
    return pipert.schedules.build(name, num_ranks=p, num_microbatches=m, num_chunks=chunks)


def test_the_best_schedule_of_eight_ranks_under_the_memory_of_1f1b():
    solution = optimal(build("1f1b", 8, 16), Costs.per_rank(), 8)
    assert solution.is_optimal
    assert solution.figure == solution.bound == 55
    clock = program_judge.run(solution.program)
    assert max(clock.rank_spans) == 55
    assert max(peak_activation(solution.program, Costs.per_rank())) <= 8
    assert not program_judge.stuck_with_rendezvous(solution.program)


@pytest.mark.parametrize(
    ("name", "p", "m", "limit", "goal"),
    [
        ("1f1b", 4, 6, 3, "makespan"),
        ("1f1b", 4, 6, 2, "longest_rank_span"),
        ("zb-h1", 3, 5, None, "longest_rank_span"),
        ("zb-v", 2, 4, 1.5, "longest_rank_span"),
        ("zb-v", 3, 4, 3, "makespan"),
        ("interleaved", 2, 4, 2, "makespan"),
    ],
)
def test_it_keeps_its_limit_and_is_no_worse_than_its_hint(name, p, m, limit, goal):
    rng = random.Random(name)
    hint = build(name, p, m)
    stages = [
        StageCosts(**{kind: rng.randint(2, 6) / 4 for kind in "FIW"}, act_w=rng.choice([0, 0.37, 1]))
        for _ in range(hint.num_stages)
    ]
    costs = Costs.per_stage(stages, p2p=0.25)
    chunks = hint.num_stages // p
    limit = None if limit is None else limit * chunks
    solution = optimal(hint, costs, limit, goal=goal, time_limit_s=6)
    report = pipert.simulate(pipert.compile(solution.program), costs)
    assert solution.figure == getattr(report, goal) >= solution.bound
    assert solution.program.paths == hint.paths
    peak = max(peak_activation(hint, costs))
    if limit is None or peak <= limit:
        assert solution.figure <= getattr(pipert.simulate(pipert.compile(hint), costs), goal)
    if limit is not None:
        assert max(report.peak_activation) <= limit * (1 + 1e-9)


def test_two_paths():
    hint = pipert.Program("two", ((0, 1), (1, 0)), (0, 0, 1, 1), _one_after_another(((0, 1), (1, 0)), (0, 0, 1, 1)))
    solution = optimal(hint, Costs.per_rank(), goal="makespan", time_limit_s=10)
    assert solution.figure == 12  # each rank has 12 ops, and both have work from the first moment to the last
    assert solution.is_optimal


def _one_after_another(paths, path_of):
    ranks = [[] for _ in paths[0]]
    for mb, path in enumerate(path_of):
        for stage in range(len(paths[0])):
            ranks[paths[path][stage]].append(pipert.Op.parse(f"{stage}F{mb}"))
        for stage in reversed(range(len(paths[0]))):
            ranks[paths[path][stage]] += [pipert.Op.parse(f"{stage}I{mb}"), pipert.Op.parse(f"{stage}W{mb}")]
    return tuple(map(tuple, ranks))


def test_a_full_backward_that_is_shorter_than_its_halves_is_not_proven_away():
    costs = Costs.per_rank(I=2, W=2, B=2.5)
    hint = build("1f1b", 3, 5)
    solution = optimal(hint, costs, 3, goal="makespan", time_limit_s=5)
    joined = pipert.simulate(pipert.compile(build("1f1b", 3, 5)), costs)
    assert solution.bound <= min(joined.makespan, solution.figure) * (1 + 1e-9)


def test_a_hint_that_deadlocks_is_refused():
    ranks = tuple(tuple(reversed(ops)) for ops in build("zb-h1", 2, 2).ranks)
    with pytest.raises(PlanError):
        optimal(pipert.Program("stuck", ((0, 1),), (0, 0), ranks), Costs.per_rank())


def test_the_same_seed_gives_the_same_schedule():
    first, second = (optimal(build("1f1b", 4, 6), Costs.per_rank(act_w=0.37), 3) for _ in range(2))
    assert first == second


def test_a_limit_below_the_least_is_refused_with_the_least():
    with pytest.raises(ConfigError, match="the least limit is 1,"):
        optimal(build("1f1b", 2, 4), Costs.per_rank(), 0.5)


def test_without_ortools_it_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *more):
        if name.startswith("ortools"):
            raise ImportError(name)
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install 'pipert\[solve\]'"):
        optimal(build("1f1b", 4, 6), Costs.per_rank(), 3)


@pytest.mark.parametrize(
    ("times", "quantum"),
    [
        ({"F": 1, "I": 1, "W": 1}, 1),
        ({"F": 18.522, "I": 18.086, "W": 9.337}, 0.001),
        ({"F": 1 / 3, "I": 0.5, "W": 2}, 1 / 6),
    ],
)
def test_times_become_exact_integers_where_they_can(times, quantum):
    shop = JobShop(Problem.of(build("1f1b", 4, 4), Costs.per_rank(**times)))
    assert shop.quantum == pytest.approx(quantum)
    for op, duration in shop.durations.items():
        assert duration * shop.quantum == pytest.approx(times[op.kind.text])


def test_times_without_a_common_divisor_are_rounded_down():
    costs = Costs.per_rank(F=2**0.5, I=3**0.5, W=5**0.5)
    shop = JobShop(Problem.of(build("1f1b", 4, 64), costs))
    for op, duration in shop.durations.items():
        exact = {"F": 2**0.5, "I": 3**0.5, "W": 5**0.5}[op.kind.text]
        assert exact - shop.quantum < duration * shop.quantum <= exact * (1 + 1e-9)
