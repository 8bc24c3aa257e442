"""The table of schedules."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from pipert.errors import ConfigError
from pipert.ir import Op, Program
from pipert.schedules import placement
from pipert.schedules.gpipe import gpipe
from pipert.schedules.interleaved import interleaved
from pipert.schedules.one_f_one_b import one_f_one_b
from pipert.schedules.zb_h1 import zb_h1
from pipert.schedules.zb_v import zb_v


@dataclass(frozen=True, slots=True)
class Schedule:
    """One row of the table: how a schedule is made, and what it costs.

    Attributes:
        order: (rank, num_ranks, num_microbatches, num_chunks) → the rank's ops.
        place: (num_ranks, num_chunks) → the rank of each stage.
        bubble: idle time of a rank, when m >= p; F, I, W are a rank's times for one microbatch, B = I + W.
        peak: activations held by the fullest rank, in whole-rank microbatches, each from its F to its B or W.
        paper: arXiv id and section; the generator's file gives the title.
        num_chunks: stages per rank, unless the caller asks for another number.
        chunks_vary: whether the caller may.
    """

    order: Callable[[int, int, int, int], list[Op]]
    place: Callable[[int, int], tuple[int, ...]]
    bubble: str
    peak: str
    paper: str
    num_chunks: int = 1
    chunks_vary: bool = False


SCHEDULES = {
    "gpipe": Schedule(
        order=gpipe,
        place=placement.loop,
        bubble="(p-1)(F+B)",
        peak="m",
        paper="arXiv 1811.06965, section 2.2",
    ),
    "1f1b": Schedule(
        order=one_f_one_b,
        place=placement.loop,
        bubble="(p-1)(F+B)",
        peak="p",
        paper="arXiv 2006.09503, section 3.2",
    ),
    "interleaved": Schedule(
        order=interleaved,
        place=placement.loop,
        num_chunks=2,
        chunks_vary=True,
        bubble="(p-1)(F+B)/v",
        peak="p+(p-1)/v",
        paper="arXiv 2104.04473, section 2.2.2",
    ),
    "zb-h1": Schedule(
        order=zb_h1,
        place=placement.loop,
        bubble="(p-1)(F+I-W)",
        peak="p",
        paper="arXiv 2401.10241, section 2.1",
    ),
    "zb-v": Schedule(
        order=zb_v,
        place=placement.vee,
        num_chunks=2,
        bubble="0 at F=I=W",
        peak="p",
        paper="arXiv 2401.10241, section 6",
    ),
}


def names() -> tuple[str, ...]:
    """List the schedules that :func:`build` knows."""
    return tuple(SCHEDULES)


def build(name: str, *, num_ranks: int, num_microbatches: int, num_chunks: int | None = None) -> Program:
    """Make the program of a schedule.

    Args:
        name: one of :func:`names`.
        num_ranks: p, at least 1.
        num_microbatches: m, at least 1; it may be smaller than p.
        num_chunks: stages per rank; the schedule's own number when None.

    Raises:
        ConfigError: an unknown name, or sizes that the schedule cannot have.
    """
    if name not in SCHEDULES:
        close = difflib.get_close_matches(name, SCHEDULES, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(SCHEDULES)}"
        raise ConfigError(f"no schedule is called {name!r}; {hint}")
    schedule = SCHEDULES[name]
    chunks = schedule.num_chunks if num_chunks is None else num_chunks
    for what, number in (("ranks", num_ranks), ("microbatches", num_microbatches), ("chunks", chunks)):
        if number < 1:
            raise ConfigError(f"{name} needs at least 1 of its {what}, not {number}")
    if chunks != schedule.num_chunks and not schedule.chunks_vary:
        raise ConfigError(f"{name} has {schedule.num_chunks} chunk(s) per rank, not {chunks}")
    ranks = tuple(tuple(schedule.order(rank, num_ranks, num_microbatches, chunks)) for rank in range(num_ranks))
    return Program(name, schedule.place(num_ranks, chunks), num_microbatches, ranks)
