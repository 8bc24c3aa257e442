"""Plans whose vocabulary is split over the ranks: lowering, the verifier, the clock and the figures."""

import dataclasses
import random
from pathlib import Path

import pytest

import pipert
from pipert import _core
from pipert.ir import Op, Program
from pipert.planfile import load, save

RANKS, MICROBATCHES = 3, 4


def row(rank: int, algorithm: int, microbatches: int = MICROBATCHES, ranks: int = RANKS) -> list[str]:
    """One microbatch after the other, with everything split."""
    ops = []
    for m in range(microbatches):
        ops += [f"{rank}EMBED{m}", f"VEMBED{m}", f"{rank}F{m}", f"VBCAST{m}", f"{rank}S{m}", f"VSTATS{m}"]
        ops += [f"{rank}T{m}", f"VGRAD{m}"] if algorithm == 1 else [f"VGRAD{m}", f"{rank}T{m}"]
        ops += [f"{rank}I{m}", f"VEMBED_GRAD{m}", f"{rank}W{m}", f"{rank}EMBED_W{m}"]
    return ops


def program(rows: list[list[str]], microbatches: int = MICROBATCHES) -> Program:
    ops = [[Op.parse(text) for text in ops] for ops in rows]
    return Program.single_path("vocabulary", range(len(rows)), microbatches, ops)


def compiled(algorithm: int) -> pipert.Plan:
    return pipert.compile(program([row(rank, algorithm) for rank in range(RANKS)]))


@pytest.mark.parametrize("algorithm", [1, 2])
def test_meetings_are_one_step_of_all_ranks(algorithm: int, tmp_path: Path) -> None:
    plan = compiled(algorithm)
    texts = plan.op_text
    for kind in ("VEMBED", "VBCAST", "VSTATS", "VGRAD", "VEMBED_GRAD"):
        for m in range(MICROBATCHES):
            first = texts.index(f"{kind}{m}")
            assert texts[first : first + RANKS] == (f"{kind}{m}",) * RANKS
            assert [plan.rank_of(op) for op in range(first, first + RANKS)] == list(range(RANKS))
    save(plan, tmp_path / "plan.json")
    again = load(tmp_path / "plan.json")
    assert again == plan


@pytest.mark.parametrize("host_cores", [None, 1.5])
@pytest.mark.parametrize("algorithm", [1, 2])
def test_the_clock_waits_for_all_ranks(algorithm: int, host_cores: float | None) -> None:
    plan = compiled(algorithm)
    times = {"F": 1.0, "I": 1.0, "W": 1.0, "S": 2.0, "T": 3.0, "EMBED": 0.25, "EMBED_W": 0.5}
    times |= {"VBCAST": 0.1, "VSTATS": 0.2, "VGRAD": 0.3, "VEMBED": 0.4, "VEMBED_GRAD": 0.6}
    columns = {kind: [time] * RANKS for kind, time in times.items()}
    costs = _core.ClockCosts(
        times=columns, scale=[], rank_speed=(1.0, 0.5, 1.0), overlap=1.0, latency=0.0, occupancy=0.0, links=[],
        host_cores=host_cores or 0.0,
    )  # fmt: skip
    start, end = (memoryview(column).cast("d") for column in _core.simulate(plan.native, costs))
    for op in range(plan.num_ops):
        for dep in plan.deps[plan.dep_offsets[op] : plan.dep_offsets[op + 1]]:
            assert start[op] >= end[dep]
        if plan.op_text[op].startswith("V"):
            members = [other for other, text in enumerate(plan.op_text) if text == plan.op_text[op]]
            assert {start[other] for other in members} == {start[op]}
            kind = plan.op_text[op].rstrip("0123456789")
            assert end[op] - start[op] == pytest.approx(times[kind])
    if host_cores is None:
        times_of_s = {
            plan.rank_of(op): end[op] - start[op] for op in range(plan.num_ops) if plan.op_text[op][1:] == "S0"
        }
        assert times_of_s == pytest.approx({0: 2.0, 1: 4.0, 2: 2.0})


@pytest.mark.parametrize("algorithm", [1, 2])
def test_what_is_held_from_s_to_t_counts(algorithm: int) -> None:
    plan = compiled(algorithm)
    report = pipert.simulate(plan, pipert.Costs.per_rank(vocab=pipert.sim.VocabCosts()))
    trace = report.trace
    zeros = [0.0] * RANKS
    figures = _core.measure(plan.native, trace.start, trace.end, act=zeros, act_w=zeros, act_kept=zeros, act_s=5.0)
    assert figures["peak_activation"] == [5.0] * RANKS


def faulty(plan: pipert.Plan, **columns: tuple) -> str:
    with pytest.raises(pipert.PlanError) as error:
        dataclasses.replace(plan, **columns)
    return str(error.value)


def test_every_dependency_is_needed() -> None:
    """Whichever single dependency is taken away, the verifier misses it; lanes keep no other order."""
    generator = random.Random(0)
    for algorithm in (1, 2):
        plan = compiled(algorithm)
        for op in generator.sample(range(plan.num_ops), 40):
            begin, end = plan.dep_offsets[op], plan.dep_offsets[op + 1]
            if begin == end or is_only_for_the_thread(plan, op):
                continue
            deps = plan.deps[:begin] + plan.deps[end:]
            offsets = tuple(o if i <= op else o - (end - begin) for i, o in enumerate(plan.dep_offsets))
            assert plan.op_text[op] in faulty(plan, deps=deps, dep_offsets=offsets)


def is_only_for_the_thread(plan: pipert.Plan, op: int) -> bool:
    """A meeting waits for the op before it in its row, also where it takes nothing from it."""
    kind, rank = plan.op_text[op].rstrip("0123456789"), plan.rank_of(op)
    reads = {"VEMBED": range(RANKS), "VSTATS": range(RANKS), "VBCAST": [RANKS - 1], "VEMBED_GRAD": [0]}
    if plan.op_text[op] in [f"VGRAD{m}" for m in range(MICROBATCHES)]:
        position = plan.op_text.index(f"{rank}T{plan.op_text[op][5:]}")
        return position > op
    return kind in reads and rank not in reads[kind]


def test_rows_that_meet_in_another_order_are_refused() -> None:
    rows = [row(rank, 2, 2) for rank in range(RANKS)]
    first, second = rows[1].index("VSTATS0"), rows[1].index("VGRAD0")
    rows[1][first], rows[1][second] = rows[1][second], rows[1][first]
    with pytest.raises(pipert.PlanError, match=r"VSTATS0|VGRAD0"):
        pipert.compile(program(rows, 2))


def test_ranks_that_wait_for_each_other_in_a_meeting_are_shown() -> None:
    rows = [["0F0", "VBCAST0", "0S0", "VSTATS0"], ["VBCAST0", "1F0", "1S0", "VSTATS0"]]
    with pytest.raises(pipert.PlanError, match="VBCAST0"):
        pipert.compile(program(rows, 1))


@pytest.mark.parametrize("missing", ["1S1", "VBCAST1", "1T1", "VGRAD1", "1EMBED_W0"])
def test_what_is_missing_on_one_rank_is_named(missing: str) -> None:
    rows = [row(rank, 1, 2) for rank in range(2)]
    rows[1].remove(missing)
    with pytest.raises(pipert.PlanError, match=missing):
        pipert.compile(program(rows, 2))


def test_both_algorithms_at_once_are_refused() -> None:
    rows = [row(rank, 1, 2) for rank in range(2)]
    place = rows[1].index("1T1")
    rows[1][place], rows[1][place + 1] = rows[1][place + 1], rows[1][place]
    with pytest.raises(pipert.PlanError, match="1T1"):
        pipert.compile(program(rows, 2))


def test_a_plan_without_backward() -> None:
    rows = [[f"{rank}EMBED0", "VEMBED0", f"{rank}F0", "VBCAST0", f"{rank}S0", "VSTATS0"] for rank in range(2)]
    plan = pipert.compile(program(rows, 1))
    assert plan.num_ops == 2 * 6 + 2
    rows[0].append("0T0")
    with pytest.raises(pipert.PlanError, match="0T0"):
        pipert.compile(program(rows, 1))
