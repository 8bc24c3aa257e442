"""The table of schedules."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass

from pipert.activation import check_memory
from pipert.costs import Costs
from pipert.errors import ConfigError
from pipert.ir import Program
from pipert.schedules import placement
from pipert.schedules.bitpipe import bitpipe
from pipert.schedules.breadth_first import breadth_first
from pipert.schedules.building_block import v_half, v_min
from pipert.schedules.chimera import chimera
from pipert.schedules.dualpipe import dualpipe
from pipert.schedules.dualpipe_v import dualpipe_v
from pipert.schedules.gis import gis, gis_h
from pipert.schedules.gpipe import gpipe
from pipert.schedules.hanayo import hanayo
from pipert.schedules.interleaved import interleaved
from pipert.schedules.interleaved_zb import interleaved_zb
from pipert.schedules.one_f_one_b import one_f_one_b
from pipert.schedules.refine import refined
from pipert.schedules.request import Effort, Make, Request, rank_by_rank
from pipert.schedules.searched import auto, zb_1p, zb_2p
from pipert.schedules.solved import optimal
from pipert.schedules.two_stage_backward import gpipe_2bp, one_f_one_b_2bp
from pipert.schedules.zb_h1 import zb_h1
from pipert.schedules.zb_h2 import zb_h2
from pipert.schedules.zb_v import zb_v
from pipert.schedules.zeropp import zeropp


@dataclass(frozen=True, slots=True)
class Schedule:
    """One row of the table: how a schedule is made, and what it costs.

    Attributes:
        make: a request → the program.
        bubble: idle time of a rank between its first and its last op, when m fills the pipeline; F, I, W are a rank's
            times for one microbatch, B = I + W.
        peak: activations held by the fullest rank, in whole-rank microbatches, each from its F to its B or W.
        paper: arXiv id and section; the generator's file gives the title.
        num_chunks: stages per rank, unless the caller asks for another number.
        chunks_vary: whether the caller may.
        from_costs: whether it is made from the costs and within the memory limit. The other schedules have one order of
            forwards and input gradients; costs move their weight gradients at most, and a memory limit only judges.
    """

    make: Make
    bubble: str
    peak: str
    paper: str
    num_chunks: int = 1
    chunks_vary: bool = False
    from_costs: bool = False


SCHEDULES = {
    "gpipe": Schedule(
        make=rank_by_rank(gpipe, placement.loop),
        bubble="(p-1)(F+B)",
        peak="m",
        paper="arXiv 1811.06965, section 2.2",
    ),
    "1f1b": Schedule(
        make=rank_by_rank(one_f_one_b, placement.loop),
        bubble="(p-1)(F+B)",
        peak="p",
        paper="arXiv 2006.09503, section 3.2",
    ),
    "interleaved": Schedule(
        make=rank_by_rank(interleaved, placement.loop),
        num_chunks=2,
        chunks_vary=True,
        bubble="(p-1)(F+B)/v",
        peak="p+(p-1)/v",
        paper="arXiv 2104.04473, section 2.2.2",
    ),
    "breadth-first": Schedule(
        make=rank_by_rank(breadth_first, placement.loop),
        num_chunks=2,
        chunks_vary=True,
        bubble="(p-1)(F+B)/v",
        peak="m",
        paper="arXiv 2211.05953, section 4.1",
    ),
    "gpipe-2bp": Schedule(
        make=rank_by_rank(gpipe_2bp, placement.loop),
        bubble="(p-1)(F+I)",
        peak="m",
        paper="arXiv 2405.18047, section 3",
    ),
    "1f1b-2bp": Schedule(
        make=one_f_one_b_2bp,
        bubble="(p-1)(F+I-W)",
        peak="m",
        paper="arXiv 2405.18047, section 3",
    ),
    "zb-h1": Schedule(
        make=rank_by_rank(zb_h1, placement.loop),
        bubble="(p-1)(F+I-W)",
        peak="p",
        paper="arXiv 2401.10241, section 2.1",
    ),
    "zb-h2": Schedule(
        make=refined(rank_by_rank(zb_h2, placement.loop)),
        bubble="(p-1)(F+I-2W)",
        peak="2p-1",
        paper="arXiv 2401.10241, section 2.2",
    ),
    "interleaved-zb": Schedule(
        make=refined(rank_by_rank(interleaved_zb, placement.loop)),
        num_chunks=2,
        chunks_vary=True,
        bubble="< (p-1)(F+I-W)/v",
        peak="p+round(2p/3)/v",
        paper="arXiv 2401.10241, section 2",
    ),
    "zb-v": Schedule(
        make=refined(rank_by_rank(zb_v, placement.vee)),
        num_chunks=2,
        bubble="0 at F=I=W",
        peak="p",
        paper="arXiv 2401.10241, section 6",
    ),
    "v-half": Schedule(
        make=refined(v_half),
        num_chunks=2,
        bubble="(p-1)(F+B)/2 at F=I=W",
        peak="(p+2)//2",
        paper="arXiv 2405.15362, section 3.1",
    ),
    "v-min": Schedule(
        make=refined(v_min),
        num_chunks=2,
        bubble="(p-1)(F+B)2/3 at F=I=W",
        peak="(p+4)//3",
        paper="arXiv 2405.15362, section 3.1",
    ),
    "gis": Schedule(
        make=rank_by_rank(gis, placement.loop),
        num_chunks=2,
        chunks_vary=True,
        bubble="(p-1)(F+I)/v",
        peak="p",
        paper="arXiv 2503.01328, section 3.1",
    ),
    "gis-h": Schedule(
        make=rank_by_rank(gis_h, placement.loop),
        num_chunks=2,
        chunks_vary=True,
        bubble="((p-1)(F+I)+(v-1)(p/2)(F+I-W))/v",
        peak="p(v+1)/2v",
        paper="arXiv 2503.01328, section 3.2",
    ),
    "zeropp": Schedule(
        make=rank_by_rank(zeropp, placement.loop),
        num_chunks=2,
        chunks_vary=True,
        bubble="(p-1)(F+I-2W)/v per block",
        peak="2p-1",
        paper="arXiv 2402.03791, section 3",
    ),
    "hanayo": Schedule(
        make=hanayo,
        num_chunks=2,
        chunks_vary=True,
        bubble="2(p-1)B/v",
        peak="p",
        paper="arXiv 2308.15762, section 3",
    ),
    "chimera": Schedule(
        make=chimera,
        bubble="(p-2)B",
        peak="p",
        paper="arXiv 2107.06925, section 3.1",
    ),
    "bitpipe": Schedule(
        make=bitpipe,
        num_chunks=2,
        bubble="(p-2)B/2",
        peak="p",
        paper="arXiv 2410.19367, section 3",
    ),
    "dualpipe": Schedule(
        make=dualpipe,
        bubble="(p/2-1)(F&B+B-3W)",
        peak="p+1",
        paper="arXiv 2412.19437, section 3.2.1",
    ),
    "dualpipe-v": Schedule(
        make=rank_by_rank(dualpipe_v, placement.vee),
        num_chunks=2,
        bubble="(p-1)(F&B+B-3W)/2",
        peak="p+1/2",
        paper="arXiv 2412.19437, section 3.2.1",
    ),
    "zb-1p": Schedule(
        make=zb_1p,
        bubble="searched; (p-1)(F+I-W)",
        peak="p",
        paper="arXiv 2401.10241, section 3",
        from_costs=True,
    ),
    "zb-2p": Schedule(
        make=zb_2p,
        bubble="searched",
        peak="2p",
        paper="arXiv 2401.10241, section 3",
        from_costs=True,
    ),
    "auto": Schedule(
        make=auto,
        bubble="searched",
        peak="the limit",
        paper="arXiv 2401.10241, section 3.1",
        chunks_vary=True,
        from_costs=True,
    ),
    "optimal": Schedule(
        make=optimal,
        bubble="the least",
        peak="the limit",
        paper="arXiv 2401.10241, section 3",
        chunks_vary=True,
        from_costs=True,
    ),
}


def names() -> tuple[str, ...]:
    """List the schedules that :func:`build` knows."""
    return tuple(SCHEDULES)


def hint(name: str) -> str:
    """Say what may be meant by a name that no schedule has."""
    close = difflib.get_close_matches(name, SCHEDULES, n=1, cutoff=0.4)
    return f"did you mean {close[0]!r}?" if close else f"there are {', '.join(SCHEDULES)}"


def build(
    name: str,
    *,
    num_ranks: int,
    num_microbatches: int,
    num_chunks: int | None = None,
    costs: Costs | None = None,
    memory_limit: float | None = None,
    effort: Effort | None = None,
) -> Program:
    """Make the program of a schedule.

    Args:
        name: one of :func:`names`.
        num_ranks: p, at least 1.
        num_microbatches: m, at least 1; it may be smaller than p.
        num_chunks: stages per rank; the schedule's own number when None.
        costs: what ops cost, by default F = I = W = 1. Some schedules have no use for the times.
        memory_limit: the most activation that a rank may hold, in the unit of the costs' ``act``.
        effort: for the schedules that are searched for, how.

    Raises:
        ConfigError: an unknown name, sizes that the schedule cannot have, or a memory limit that it cannot keep; the
            message says what it needs.
    """
    if name not in SCHEDULES:
        raise ConfigError(f"no schedule is called {name!r}; {hint(name)}")
    schedule = SCHEDULES[name]
    chunks = schedule.num_chunks if num_chunks is None else num_chunks
    if chunks != schedule.num_chunks and not schedule.chunks_vary:
        raise ConfigError(f"{name} has {schedule.num_chunks} chunk(s) per rank, not {chunks}")
    costs = Costs.per_rank() if costs is None else costs
    request = Request(
        num_ranks, num_microbatches, chunks, costs, memory_limit, effort or Effort(), free_chunks=num_chunks is None
    )
    program = dataclasses.replace(schedule.make(request), name=name)
    if memory_limit is not None:
        check_memory(program, costs, memory_limit)
    return program
