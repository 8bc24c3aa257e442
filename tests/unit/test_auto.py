"""Schedules that are searched for: they run, keep their limits, and are as fast as the paper's."""

from __future__ import annotations

import math
import random

import pytest
from program_judge import stuck_with_rendezvous

import pipert
from pipert import ConfigError, Costs, Program, schedules
from pipert.schedules import Effort
from pipert.sim import Link, StageCosts
from pipert.solve.auto import auto
from pipert.solve.bound import lower_bound


def times_of(p, m, F, I, W, p2p, layer):  # noqa: E741
    """Measured times, and the activations of a transformer layer: 34h + 5as a token before I, 32h before W."""
    h, a, s = layer
    return p, m, Costs.per_rank(F=F, I=I, W=W, p2p=p2p, act=1, act_w=32 * h / (34 * h + 5 * a * s))


SMALL, LARGE = (2304, 24, 1024), (5120, 40, 1024)
# The Zero Bubble paper (arXiv 2401.10241, tables 5 and 6): sizes, times, and the bubbles of ZB-1p and ZB-2p.
GOLDEN = [
    (*times_of(8, 24, 18.522, 18.086, 9.337, 0.601, SMALL), 0.1585, 0.0433),
    (*times_of(8, 32, 18.513, 18.086, 9.331, 0.626, SMALL), 0.1242, 0.0039),
    (*times_of(8, 64, 18.546, 18.097, 9.321, 0.762, SMALL), 0.0674, 0.0026),
    (*times_of(16, 48, 11.347, 11.248, 8.132, 0.377, LARGE), 0.1397, 0.0066),
    (*times_of(16, 64, 11.307, 11.254, 8.101, 0.379, LARGE), 0.1088, 0.0054),
    (*times_of(16, 128, 11.325, 11.308, 8.109, 0.378, LARGE), 0.0576, 0.0028),
]


def bubble(program, costs):
    return pipert.simulate(pipert.compile(program), costs).bubble_rate_span


@pytest.mark.parametrize(("p", "m", "costs", "one_p", "two_p"), GOLDEN)
def test_the_caps_of_the_paper_give_its_bubbles_or_less(p, m, costs, one_p, two_p):
    for name, published, num_held in (("zb-1p", one_p, p), ("zb-2p", two_p, 2 * p)):
        program = schedules.build(name, num_ranks=p, num_microbatches=m, costs=costs)
        assert round(bubble(program, costs), 4) <= published
        assert max(peaks(program, costs)) <= num_held + 1e-9


def peaks(program: Program, costs: Costs) -> list[float]:
    """The most that each rank holds, when its ops run in order."""
    stages = costs.for_plan(program)
    result = []
    for ops in program.ranks:
        level = peak = 0.0
        for op in ops:
            stage = stages[op.stage]
            steps = {"F": (0.0, stage.act), "I": (stage.act, stage.act_w), "W": (stage.act_w, stage.act_kept)}
            before, after = steps[op.kind.text]
            level += after - before
            peak = max(peak, level)
        result.append(peak)
    return result


def is_sound(program: Program, limit: float, costs: Costs) -> None:
    """Every op once, on its rank, each stage's microbatches ascending, no deadlock, no more memory than allowed."""
    num_cells = program.num_stages * program.num_microbatches
    done = [op for ops in program.ranks for op in ops]
    assert len(done) == len(set(done)) == 3 * num_cells
    for rank, ops in enumerate(program.ranks):
        assert all(program.rank_of(op.stage, op.microbatch) == rank for op in ops)
        for stage in program.chunks(rank):
            for letter in "FIW":
                order = [op.microbatch for op in ops if op.stage == stage and op.kind.text == letter]
                assert order == sorted(order)
    assert stuck_with_rendezvous(program) == []
    assert max(peaks(program, costs)) <= limit * (1 + 1e-9)
    pipert.compile(program)


def random_case(rng: random.Random):
    p, m = rng.randint(1, 5), rng.randint(1, 7)
    down = tuple(range(p))
    paths, path_of = rng.choice(
        [
            ((down,), [0] * m),
            ((down * 2,), [0] * m),
            ((down + down[::-1],), [0] * m),
            ((down + down[::-1] + down,), [0] * m),
            ((down, down[::-1]), [mb % 2 for mb in range(m)]),
            ((tuple(rng.sample([*down, *rng.choices(down, k=2)], p + 2)),), [0] * m),
        ]
    )
    stages = []
    for _ in paths[0]:
        act = rng.uniform(0.5, 2)
        act_w = act * rng.random()
        costs = {kind: rng.choice([0.0, 1.0, rng.uniform(0.2, 3)]) for kind in "FIW"}
        stages.append(StageCosts(**costs, act=act, act_w=act_w, act_kept=act_w * rng.choice([0, 0, 0.1])))
    return (
        paths,
        path_of,
        Costs.per_stage(stages, p2p=rng.choice([0.0, 0.1, 2.0]), rank_speed=rng.choices([1, 0.5], k=p)),
    )


def least_limit(paths, path_of, costs):
    """What a rank needs when microbatches run one after the other."""
    least = 0.0
    for rank in range(1 + max(map(max, paths))):
        kept, chunks = 0.0, []
        for path in path_of:
            mine = [stage for stage, holder in zip(costs.stages, paths[path], strict=True) if holder == rank]
            kept += sum(stage.act_kept for stage in mine)
            chunks.append(sum(stage.act - stage.act_kept for stage in mine))
        least = max(least, kept + max(chunks))
    return least


@pytest.mark.parametrize("seed", range(40))
def test_what_is_found_runs_within_its_limit_on_any_placement(seed):
    rng = random.Random(seed)
    paths, path_of, costs = random_case(rng)
    limit = least_limit(paths, path_of, costs) * rng.choice([1.0, 1.2, 2.0, 10.0])
    program = auto(paths, path_of, costs, limit, rounds=1)
    is_sound(program, limit, costs)


def test_the_same_arguments_find_the_same_schedule():
    costs = Costs.per_rank(F=1.0, I=1.2, W=0.7, p2p=0.1, act=1, act_w=0.4)
    first, again, other = (
        schedules.build(
            "auto", num_ranks=3, num_microbatches=7, costs=costs, memory_limit=2.5, effort=Effort(seed=seed)
        )
        for seed in (5, 5, 6)
    )
    assert first == again
    assert bubble(other, costs) == pytest.approx(bubble(first, costs), rel=0.2)


@pytest.mark.parametrize("heavy", [None, 0, 1, 3])
@pytest.mark.parametrize("limit", [4, 8])
def test_auto_is_no_slower_than_what_has_its_memory(heavy, limit):
    p, m = 4, 10
    scale = [3.0 if stage == heavy else 1.0 for stage in range(p)]
    stages = [StageCosts(F=1.1 * x, I=1.3 * x, W=0.8 * x, act=1, act_w=0.3) for x in scale]
    costs = Costs.per_stage(stages, p2p=0.05)
    found = schedules.build("auto", num_ranks=p, num_microbatches=m, costs=costs, memory_limit=limit)
    is_sound(found, limit, costs)
    for name in ("1f1b", "zb-h1", "zb-h2", "zb-1p"):
        try:
            known = schedules.build(name, num_ranks=p, num_microbatches=m, costs=costs, memory_limit=limit)
        except ConfigError:
            continue
        assert bubble(found, costs) <= bubble(known, costs) + 1e-9
    bound = lower_bound(found, costs, limit).longest_rank_span
    assert pipert.simulate(pipert.compile(found), costs).longest_rank_span >= bound


def test_a_whole_backward_that_is_faster_than_its_halves_is_taken():
    costs = Costs.per_rank(F=1, I=1, W=1, B=1.2)
    found = schedules.build("auto", num_ranks=3, num_microbatches=6, num_chunks=1, costs=costs, memory_limit=3)
    assert {op.kind.text for ops in found.ranks for op in ops} == {"F", "B"}


def test_a_slow_rank_and_a_slow_link_are_planned_for():
    slow = Costs.per_rank(rank_speed=[1, 0.5, 1], links={(0, 1): Link(latency=5.0)})
    plain = Costs.per_rank()
    planned, unaware = (
        schedules.build("auto", num_ranks=3, num_microbatches=8, num_chunks=1, costs=costs) for costs in (slow, plain)
    )
    assert bubble(planned, slow) < bubble(unaware, slow)


def test_the_makespan_can_be_the_goal():
    costs = Costs.per_rank(F=1, I=1, W=0.5, p2p=0.3)
    spans, makespans = (
        pipert.simulate(pipert.compile(auto([range(4)], [0] * 8, costs, 6, goal=goal, rounds=2)), costs)
        for goal in ("longest_rank_span", "makespan")
    )
    assert makespans.makespan <= spans.makespan
    assert spans.longest_rank_span <= makespans.longest_rank_span


def test_a_limit_below_the_least_is_refused_with_the_least():
    stages = [StageCosts(act=act, act_w=0.5) for act in (1.0, 2.0, 0.5, 1.25)]
    costs = Costs.per_stage(stages)
    with pytest.raises(ConfigError, match=r"limit of 1\.5: on rank 0 one microbatch alone holds 2\.25; .* is 2\.5"):
        auto([(0, 1, 1, 0)], [0] * 4, costs, 1.5)
    is_sound(auto([(0, 1, 1, 0)], [0] * 4, costs, 2.5, rounds=1), 2.5, costs)
    with pytest.raises(ConfigError, match="limit of nan"):
        auto([(0, 1, 1, 0)], [0] * 4, costs, math.nan)


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.inf, math.nan])
def test_a_time_limit_is_a_positive_number(seconds):
    with pytest.raises(ConfigError, match="positive time limit"):
        Effort(time_limit_s=seconds)


def test_costs_per_stage_say_how_many_chunks_there_are():
    costs = Costs.per_stage([StageCosts()] * 6)
    assert schedules.build("auto", num_ranks=2, num_microbatches=3, costs=costs).num_stages == 6
    with pytest.raises(ConfigError, match="6 stages, which do not spread over 4 ranks"):
        schedules.build("auto", num_ranks=4, num_microbatches=3, costs=costs)


def test_a_search_can_be_stopped_and_tells_how_it_goes():
    costs = Costs.per_rank(F=1.0, I=1.2, W=0.7, p2p=0.1)
    told: list[tuple[float, float]] = []
    effort = Effort(
        progress=lambda best, share: told.append((best, share)), should_stop=lambda: len(told) >= 3, time_limit_s=60
    )
    program = schedules.build("auto", num_ranks=8, num_microbatches=32, costs=costs, memory_limit=6, effort=effort)
    is_sound(program, 6, costs)
    assert 3 <= len(told) < 20
    assert all(math.isfinite(best) and 0 <= share <= 1 for best, share in told)
