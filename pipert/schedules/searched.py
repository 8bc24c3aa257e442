"""Schedules that are searched for: from costs, within memory limits.

Qi et al., "Zero Bubble Pipeline Parallelism", section 3, arXiv 2401.10241.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from pipert.errors import ConfigError
from pipert.ir import Program
from pipert.schedules import placement
from pipert.schedules.request import Effort, Request

_ROUNDS = 4
"""How many rounds of the search `auto` spends on the placement that it chooses."""


def zb_1p(request: Request) -> Program:
    """Make the fastest schedule found in which a rank holds the activations of p microbatches at most."""
    return _within(request, request.num_ranks)


def zb_2p(request: Request) -> Program:
    """Make the fastest schedule found in which a rank holds the activations of 2p microbatches at most."""
    return _within(request, 2 * request.num_ranks)


def auto(request: Request) -> Program:
    """Make the fastest schedule found within the memory limit.

    The stages stand on the ranks in a loop or, where a rank has several, folded into a V (arXiv 2401.10241, section 6).
    Where the number of chunks is free and the costs are those of whole ranks, one chunk and two are tried. Each
    placement gets one round of the search, and the best of them the rest.
    """
    from pipert.lowering import compile
    from pipert.sim import simulate

    def span(program: Program) -> float:
        return simulate(compile(program), request.costs).longest_rank_span

    paths = _placements(request)
    total = len(paths) + _ROUNDS
    tried = [
        _search(dataclasses.replace(request, effort=_part(request.effort, done, 1, total)), path)
        for done, path in enumerate(paths)
    ]
    best = min(tried, key=span)
    rest = dataclasses.replace(request, effort=_part(request.effort, len(paths), _ROUNDS, total))
    return min(best, _search(rest, best.paths[0], rounds=_ROUNDS, start=best), key=span)


def _placements(request: Request) -> list[tuple[int, ...]]:
    num_ranks, costs = request.num_ranks, request.costs
    if not costs.whole_rank:
        if request.free_chunks and len(costs.stages) % num_ranks:
            raise ConfigError(f"costs are for {len(costs.stages)} stages, which do not spread over {num_ranks} ranks")
        numbers_of_chunks = [len(costs.stages) // num_ranks if request.free_chunks else request.num_chunks]
    else:
        numbers_of_chunks = [1, 2] if request.free_chunks else [request.num_chunks]
    places = [place(num_ranks, chunks) for chunks in numbers_of_chunks for place in (placement.loop, placement.vee)]
    return list(dict.fromkeys(places))


def _within(request: Request, num_held: int) -> Program:
    path = placement.loop(request.num_ranks, 1)
    placed = Program.single_path("", path, request.num_microbatches, ((),) * request.num_ranks)
    limit = math.inf if request.memory_limit is None else request.memory_limit
    limits = [min(limit, num_held * stage.act) for stage in request.costs.for_plan(placed)]
    return _search(request, path, limits=limits)


def _search(
    request: Request,
    path: Sequence[int],
    *,
    limits: Sequence[float] | None = None,
    rounds: int = 1,
    start: Program | None = None,
) -> Program:
    from pipert.solve.auto import auto as search

    return search(
        [path],
        [0] * request.num_microbatches,
        request.costs,
        request.memory_limit if limits is None else limits,
        start=start,
        rounds=rounds,
        seed=request.effort.seed,
        time_limit_s=request.effort.time_limit_s,
        progress=request.effort.progress,
        should_stop=request.effort.should_stop,
    )


def _part(effort: Effort, done: int, now: int, total: int) -> Effort:
    """Make the effort of ``now`` of ``total`` parts of a search, after ``done`` of them."""
    progress = effort.progress
    return dataclasses.replace(
        effort,
        time_limit_s=None if effort.time_limit_s is None else effort.time_limit_s * now / total,
        progress=None if progress is None else lambda best, share: progress(best, (done + now * share) / total),
    )
