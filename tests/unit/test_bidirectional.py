"""Wave and bidirectional schedules: complete, runnable, and as fast and as small as their papers say."""

from __future__ import annotations

import math

import pytest
from program_judge import UNIT, run, stuck_with_rendezvous
from torch.distributed.pipelining.schedules import ScheduleDualPipeV

import pipert
from pipert import ConfigError, schedules
from pipert.ir import Op, Program

KINDS = [
    ("hanayo", 2),
    ("hanayo", 4),
    ("hanayo", 6),
    ("chimera", 1),
    ("bitpipe", 2),
    ("dualpipe", 1),
    ("dualpipe-v", 2),
]
EQUAL_SLOTS = KINDS[:5]
MIXED = {"F": 18.522, "I": 18.086, "W": 9.337, "B": 27.423}


def build(name: str, p: int, m: int, v: int | None = None) -> Program:
    return schedules.build(name, num_ranks=p, num_microbatches=m, num_chunks=v)


def bubble(program: Program, times: dict[str, float], v: int) -> float:
    """Idle time within the longest rank's span; ``times`` are those of a rank's whole share."""
    share = {letter: time / v for letter, time in times.items()}
    return max(run(program, share).rank_spans) - program.num_microbatches * (times["F"] + times["B"])


def texts(program: Program, rank: int) -> str:
    return " ".join(map(str, program.ranks[rank]))


@pytest.mark.parametrize(("name", "v"), KINDS)
@pytest.mark.parametrize("p", range(1, 9))
def test_runs_for_all_sizes_with_rendezvous_and_two_receives(name: str, v: int, p: int) -> None:
    for m in range(1, 18):
        program = build(name, p, m, v)
        assert program.num_stages == p * v
        places = [(rank, part) for rank, ops in enumerate(program.ranks) for op in ops for part in op.unpacked]
        assert all(program.rank_of(part.stage, part.microbatch) == rank for rank, part in places)
        # A full backward is an input and a weight gradient.
        for letters in ("F", "BI", "BW"):
            order: dict[tuple[int, int], list[int]] = {}
            for _, part in places:
                if part.kind.text in letters:
                    order.setdefault((program.path_of[part.microbatch], part.stage), []).append(part.microbatch)
            assert len(order) == len(program.paths) * program.num_stages
            for (path, _), microbatches in order.items():
                assert microbatches == [mb for mb in range(m) if program.path_of[mb] == path]
        assert stuck_with_rendezvous(program) == []
        pipert.compile(program)


@pytest.mark.parametrize(("name", "v"), EQUAL_SLOTS)
@pytest.mark.parametrize("p", range(1, 9))
@pytest.mark.parametrize("num_units", [1, 2, 3])
def test_bubble_and_peak_of_equal_slots(name: str, v: int, p: int, num_units: int) -> None:
    program = build(name, p, num_units * p, v)
    # Two directions halve the bubble; where both meet on a middle rank, one of them has to wait for a slot.
    width = 2 * (p - 1) if name == "hanayo" else 2 * math.ceil(p / 2) - 2
    for f, b in ((1, 1), (1, 2), (3, 3), (18.522, 27.423)):
        assert bubble(program, {"F": f, "B": b}, v) == pytest.approx(width * b / v, abs=1e-6)
    assert max(run(program).peaks) == v * p


@pytest.mark.parametrize("p", [2, 4, 6, 8, 16])
def test_bubble_ratios_of_the_bidirectional_papers(p: int) -> None:
    """With B = 2F, (p-2)/(3m/2 + p-2) for chimera and (p-2)/(3m + p-2) for bitpipe."""
    for name, v in (("chimera", 1), ("bitpipe", 2)):
        for m in (p, 3 * p):
            makespan = run(build(name, p, m), {"F": 1 / v, "B": 2 / v}).makespan
            assert 1 - 3 * m / makespan == pytest.approx((p - 2) / (1.5 * v * m + p - 2))


@pytest.mark.parametrize(("name", "v"), EQUAL_SLOTS)
@pytest.mark.parametrize("p", range(2, 9))
def test_uneven_microbatches_cost_one_op_at_most(name: str, v: int, p: int) -> None:
    even = {"F": 1.0, "B": 1.0}
    for m in range(p + 1, 3 * p):
        program = build(name, p, m, v)
        assert bubble(program, even, v) <= bubble(build(name, p, p, v), even, v) + 1 / v + 1e-9
        if v <= 2 and name != "bitpipe":
            assert max(run(program).peaks) <= v * p


@pytest.mark.parametrize("p", range(1, 9))
def test_bubble_and_peak_of_dualpipe_v(p: int) -> None:
    for m in (2 * p - (p > 1), 2 * p, 2 * p + 1, 4 * p):
        program = build("dualpipe-v", p, m)
        assert max(run(program).peaks) == 2 * p + 1
        for f, w in ((1, 1), (10, 6), (7, 0)):  # the formula holds where F = I >= W
            times = {"F": f, "I": f, "W": w, "B": f + w}
            formula = (p - 1) * ((f + times["B"]) + times["B"] - 3 * w) / 2
            assert bubble(program, times, 2) == pytest.approx(formula)


@pytest.mark.parametrize("p", range(2, 9))
def test_bubble_and_peak_of_dualpipe(p: int) -> None:
    """An odd p is as slow as p + 1 ranks, and holds what they hold."""
    even = p + p % 2
    for m in (2 * even, 2 * even + 2, 4 * even):
        program = build("dualpipe", p, m)
        assert max(run(program).peaks) == even + 1
        for f, w in ((1, 1), (10, 6), (7, 0)):
            times = {"F": f, "I": f, "W": w, "B": f + w}
            formula = (even / 2 - 1) * ((f + times["B"]) + times["B"] - 3 * w)
            assert bubble(program, times, 1) == pytest.approx(formula)
    for m in range(1, 4 * p, 2):
        assert run(build("dualpipe", p, m)).makespan <= run(build("dualpipe", p, m + 1)).makespan


@pytest.mark.parametrize("p", range(1, 9))
def test_dualpipe_v_is_as_fast_as_torch_s(p: int) -> None:
    for m in (2 * p, 2 * p + 3, 4 * p):
        peer = object.__new__(ScheduleDualPipeV)
        peer.pp_group_size, peer._n_microbatches = p, m
        rows = [map(str, peer._calculate_single_rank_operations(rank)) for rank in range(p)]
        theirs = Program.single_path(
            "theirs", (*range(p), *reversed(range(p))), m, [list(map(Op.parse, row)) for row in rows]
        )
        for times in (UNIT, MIXED):
            assert run(build("dualpipe-v", p, m), times).makespan <= run(theirs, times).makespan


def test_orders_are_those_of_the_papers() -> None:
    program = build("chimera", 4, 4)
    assert program.paths == ((0, 1, 2, 3), (3, 2, 1, 0))
    assert program.path_of == (0, 1, 0, 1)
    assert texts(program, 0) == "0F0 0F2 3F1 3B1 3F3 3B3 0B0 0B2"
    assert texts(program, 1) == "1F0 2F1 1F2 2F3 2B1 1B0 2B3 1B2"
    program = build("bitpipe", 2, 2)
    assert program.paths == ((0, 1, 1, 0), (1, 0, 0, 1))
    assert texts(program, 0) == "0F0 1F1 2F1 3F0 3B0 2B1 1B1 0B0"
    program = build("hanayo", 2, 2, 4)
    assert program.paths == ((0, 1, 1, 0, 0, 1, 1, 0),)
    program = build("hanayo", 2, 2)
    assert texts(program, 0) == "0F0 0F1 3F0 3B0 3F1 3B1 0B0 0B1"
    assert texts(program, 1) == "1F0 2F0 1F1 2F1 2B0 1B0 2B1 1B1"
    program = build("dualpipe", 2, 4)
    assert texts(program, 0) == "0F0 1F1 0F2 1B1 (1F3;0B0)OVERLAP_F_B 1B3 0I2 0W2"
    assert texts(program, 1) == "0F1 1F0 0F3 1B0 (1F2;0B1)OVERLAP_F_B 1B2 0I3 0W3"
    program = build("dualpipe-v", 2, 4)
    assert texts(program, 0) == (
        "0F0 0F1 0F2 3F0 3I0 3W0 3F1 (0F3;3B1)OVERLAP_F_B (3F2;0B0)OVERLAP_F_B 3B2 (3F3;0B1)OVERLAP_F_B "
        "3B3 0I2 0W2 0I3 0W3"
    )


def test_a_path_without_microbatches_is_left_out() -> None:
    for name in ("chimera", "bitpipe", "dualpipe"):
        assert len(build(name, 4, 1).paths) == 1
        assert len(build(name, 4, 2).paths) == 2


def test_half_a_wave_is_refused() -> None:
    with pytest.raises(ConfigError, match="2 chunks per rank for each wave: an even number, not 3"):
        build("hanayo", 4, 8, 3)
