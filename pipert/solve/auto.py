"""A schedule that is searched for, from costs and within memory limits.

The search is native (csrc/search): schedules by rules, after the automatic scheduler of Qi et al., "Zero Bubble
Pipeline Parallelism" (arXiv 2401.10241, section 3.1), whose parameters are searched over; then moves of single ops, by
simulated annealing.
"""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from pipert.activation import peak_activation
from pipert.costs import Costs, tolerated
from pipert.errors import ConfigError
from pipert.ir import Program
from pipert.lowering import compile
from pipert.ops import OpKind
from pipert.passes import split_backward
from pipert.sim import simulate
from pipert.solve.bound import bound_of
from pipert.solve.orders import from_order, search_problem, to_order
from pipert.solve.problem import Problem

Goal = Literal["longest_rank_span", "makespan"]
"""The figure of `pipert.sim.Report` that is minimised."""

# A round of the search makes so many ops by rules and by moves, about a second's work; fewer in small problems.
_RULE_OPS, _ORDER_OPS = 6_000_000, 60_000_000
_MOST_RULE_TRIALS, _MOST_ORDER_TRIALS = 4_000, 50_000
_CLOSE = 1e-8  # so near to the bound, a figure differs from it by rounding
_KINDS = {OpKind.FORWARD, OpKind.BACKWARD, OpKind.INPUT_GRAD, OpKind.WEIGHT_GRAD}


def auto(
    paths: Sequence[Sequence[int]],
    path_of: Sequence[int],
    costs: Costs,
    memory_limit: float | Sequence[float] | None = None,
    *,
    start: Program | None = None,
    goal: Goal = "longest_rank_span",
    rounds: int = 4,
    seed: int = 0,
    time_limit_s: float | None = None,
    progress: Callable[[float, float], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Program:
    """Search for a fast schedule of a placement, with the backward split and each stage's microbatches in order.

    It starts from the schedules of the registry that have this placement and keep the limits, and is no slower than any
    of them. The same arguments give the same schedule, unless time or the caller ends the search.

    Args:
        paths: per path, the rank of each stage; every rank from 0 up to the highest has one.
        path_of: per microbatch, its path.
        costs: what ops cost.
        memory_limit: the most activation that a rank may hold, in the unit of the costs' ``act``; one for all ranks, or
            one for each; None: no limit.
        start: a schedule of this placement to start from as well.
        goal: which figure counts. The longest rank span is right where ranks step their optimizer without waiting for
            each other, else the makespan.
        rounds: how often the search is repeated, each time from its best, unless there is a time limit.
        seed: for another search, as good.
        time_limit_s: repeat the search until so much time is over.
        progress: called now and then with the best figure so far and the share of the search that is over, 0 to 1.
        should_stop: asked now and then; once it says so, the best so far is returned.

    Raises:
        ConfigError: the costs are for other sizes, or a limit is below what one microbatch takes; the message says how
            much that is.
    """
    num_ranks = 1 + max(map(max, paths))
    placed = Program("auto", tuple(map(tuple, paths)), tuple(path_of), ((),) * num_ranks)
    limits = _per_rank(memory_limit, num_ranks)
    check_limits(limits, least_memory(placed, costs))
    problem = search_problem(placed, costs, limits)
    known = [*_known_schedules(placed), *([] if start is None else [start])]
    starts = [to_order(split_backward(program)) for program in known]
    bound = getattr(bound_of(Problem.of(placed, costs, max(limits))), goal)
    deadline = math.inf if time_limit_s is None else time.monotonic() + time_limit_s
    figure, round_number, stopped = math.inf, 0, False

    def watch(best: float, share_of_round: float) -> bool:
        nonlocal stopped
        if progress is not None:
            share = (round_number + share_of_round) / rounds
            if time_limit_s is not None:
                share = 1 - max(0.0, deadline - time.monotonic()) / time_limit_s
            progress(best, share)
        stopped = time.monotonic() >= deadline or (should_stop is not None and should_stop())
        return not stopped

    while not stopped and figure > bound * (1 + _CLOSE) and (time_limit_s is not None or round_number < rounds):
        order, figure = problem.search(
            starts,
            seed=seed + round_number,
            rule_trials=max(50, min(_MOST_RULE_TRIALS, _RULE_OPS // problem.num_ops)),
            order_trials=max(500, min(_MOST_ORDER_TRIALS, _ORDER_OPS // problem.num_ops)),
            bound=bound * (1 + _CLOSE),
            by_span=goal == "longest_rank_span",
            watch=watch,
        )
        starts = [order]
        round_number += 1
    found = from_order(placed, starts[0])
    if all(stage.B is None for stage in costs.stages):
        return found
    whole = [program for program in known if _keeps(program, costs, limits)]
    return min([found, *whole], key=lambda program: getattr(simulate(compile(program), costs), goal))


def least_memory(placed: Program, costs: Costs) -> tuple[float, ...]:
    """Per rank, the least memory limit under which a placement has a schedule: one microbatch after the other."""
    stages = costs.for_plan(placed)
    kept = [0.0] * placed.num_ranks
    held = [0.0] * placed.num_ranks
    for path in placed.path_of:
        here = [0.0] * placed.num_ranks
        for stage, rank in zip(stages, placed.paths[path], strict=True):
            kept[rank] += stage.act_kept
            here[rank] += stage.act - stage.act_kept
        held = list(map(max, held, here))
    return tuple(map(operator.add, kept, held))


def check_limits(limits: Sequence[float], least: Sequence[float]) -> None:
    """Refuse memory limits that no schedule can keep.

    Raises:
        ConfigError: naming the rank and the least limit of all ranks.
    """
    for rank, (limit, needed) in enumerate(zip(limits, least, strict=True)):
        if not needed <= tolerated(limit):
            raise ConfigError(
                f"no schedule keeps the memory limit of {limit:g}: on rank {rank} one microbatch alone holds "
                f"{needed:g}; the least limit is {max(least):g}"
            )


def _per_rank(memory_limit: float | Sequence[float] | None, num_ranks: int) -> Sequence[float]:
    if isinstance(memory_limit, Sequence):
        if len(memory_limit) != num_ranks:
            raise ConfigError(f"there are {len(memory_limit)} memory limits for {num_ranks} ranks")
        return memory_limit
    return [math.inf if memory_limit is None else memory_limit] * num_ranks


def _known_schedules(placed: Program) -> Iterator[Program]:
    """Make those of the registry's schedules that have one order and stand on the ranks like ``placed``."""
    from pipert.schedules import SCHEDULES
    from pipert.schedules.request import Request

    num_ranks, num_chunks = placed.num_ranks, placed.num_stages // placed.num_ranks
    for schedule in SCHEDULES.values():
        if schedule.from_costs or (num_chunks != schedule.num_chunks and not schedule.chunks_vary):
            continue
        try:
            if (
                schedule.make(Request(num_ranks, min(num_ranks, placed.num_microbatches), num_chunks)).paths
                != placed.paths
            ):
                continue
            program = schedule.make(Request(num_ranks, placed.num_microbatches, num_chunks))
        except ConfigError:  # it has no order of these sizes
            continue
        kinds = {part.kind for ops in program.ranks for op in ops for part in op.unpacked}
        if program.path_of == placed.path_of and kinds <= _KINDS:
            yield program


def _keeps(program: Program, costs: Costs, limits: Sequence[float]) -> bool:
    return all(peak <= tolerated(limit) for peak, limit in zip(peak_activation(program, costs), limits, strict=True))
