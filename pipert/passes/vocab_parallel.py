"""Split the output layer and the input embedding over the vocabulary: every rank gets its share of both, as passes.

Yeung et al., "Balancing Pipeline Parallelism with Vocabulary Parallelism", section 5, arXiv 2411.05288.
"""

from __future__ import annotations

import dataclasses
import itertools

from pipert.activation import Room, peak_activation
from pipert.costs import Costs, StageCosts, VocabCosts, tolerated
from pipert.errors import ConfigError, PlanError
from pipert.ir import Op, Program
from pipert.ops import OpKind, Scope
from pipert.passes.delay_backward import delay_backward
from pipert.passes.validate import validate
from pipert.passes.vocab_clock import VocabClock

NUM_BARRIERS = {1: 2, 2: 1}
"""Per algorithm, how often all ranks wait for each other between the last stage's forward and its backward."""
_OVERRUNS = (0.0, 0.5, 1.0)
_WORTH = 1e-3
"""An interval later must make the step shorter by this share of it: its price is a microbatch of memory."""
_MAX_OPS = 20_000
"""Of larger programs fewer orders are tried."""


def vocab_parallel(
    program: Program, algorithm: int, costs: Costs | None = None, memory_limit: float | None = None
) -> Program:
    """Give every rank of ``program`` its passes over its shard of the vocabulary, and the meetings that they need.

    Per microbatch m: ``rEMBEDm`` on every rank r, then ``VEMBEDm``, before ``0Fm``; ``VBCASTm`` after the last stage's
    forward; ``rSm`` on every rank, ``VSTATSm``. In Algorithm 1 ``rTm`` on every rank, which makes the gradients of X
    and of the weight, then ``VGRADm``; in Algorithm 2 ``VGRADm`` at once, and ``rTm``, the weight's gradient alone, at
    any time after it. Then the last stage's backward; after that of stage 0 ``VEMBED_GRADm``, and ``rEMBED_Wm`` at any
    time. A program without backward gets what comes before T.

    As in the paper, backwards start up to so many intervals later as there are barriers: two in Algorithm 1, one in
    Algorithm 2, where an interval is the time of a microbatch. So no rank holds more than that many microbatches more
    than before, of whatever the fullest one held. The paper's building blocks have a place for S and T in the interval;
    here a clock with the costs at hand finds the places, in whatever program: S as soon as its input has arrived, T in
    Algorithm 2 (and weight gradients, if that is better than where they stood) where the rank would wait, or needs the
    memory. Backwards start an interval later only where that makes the step shorter by a thousandth at least: programs
    that cut the backward often need no more memory than before.

    Args:
        program: without replicas, collectives and post-validation.
        algorithm: 1 (less work in S) or 2 (one barrier less).
        costs: those of the vocabulary among them; by default F = I = W = S = T = 1.
        memory_limit: the most that a rank may hold, in the unit of the costs' ``act``; None: no limit.

    Raises:
        ConfigError: the algorithm is neither 1 nor 2; the program has something that it must not have, or these passes
            already; the costs are for other sizes, or lack those of the vocabulary; the memory limit is too low.
        PlanError: the program is incomplete, or waits in a circle.
    """
    costs = costs or Costs.per_rank(vocab=VocabCosts())
    _check(program, algorithm)
    best: tuple[float, Program] | None = None
    peaks: list[float] = []
    for num_late in range(NUM_BARRIERS[algorithm] + 1 if _trains(program) else 1):
        for order in sorted(_orders(program, algorithm, costs, num_late), key=_makespan):
            rows = tuple(map(tuple, _rows(order)))
            made = dataclasses.replace(program, name=f"{program.name}-vocab-{algorithm}", ranks=rows)
            peaks.append(max(peak_activation(made, costs)))
            if peaks[-1] <= tolerated(memory_limit):
                if best is None or order.makespan < best[0] * (1 - _WORTH):
                    best = order.makespan, made
                break
    if best is not None:
        return best[1]
    if not peaks:
        raise PlanError(f"{program.name} waits in a circle, with or without its passes over the vocabulary")
    raise ConfigError(
        f"{program.name} with its passes over the vocabulary holds {min(peaks):g} or more on its fullest rank, but the "
        f"memory limit is {memory_limit:g}"
    )


def _check(program: Program, algorithm: int) -> None:
    if algorithm not in NUM_BARRIERS:
        raise ConfigError(f"vocabulary parallelism has Algorithms 1 and 2, not {algorithm}")
    scopes = {op.kind.scope for row in program.ranks for op in row}
    if Scope.SHARD in scopes or Scope.MEETING in scopes:
        raise ConfigError(f"{program.name} has passes over the vocabulary already")
    if Scope.RANK in scopes:
        raise ConfigError(f"{program.name} has post-validation, which does not judge the output layer of all ranks")
    if Scope.STAGE in scopes:
        raise ConfigError(
            f"{program.name} has collectives: add those of sharded parameters after this pass, not before"
        )
    if len(set(program.paths)) > 1:
        raise ConfigError(
            f"{program.name} has replicas of its stages, so that there is not one last stage for whose output all "
            "ranks can wait; vocabulary parallelism is for schedules with one path"
        )
    validate(program)


def _trains(program: Program) -> bool:
    return any(part.kind is not OpKind.FORWARD for row in program.ranks for op in row for part in op.unpacked)


def _orders(program: Program, algorithm: int, costs: Costs, num_late: int) -> list[VocabClock]:
    """Try weight gradients where they stand and where they fill; of what was tried, give what ran to its end."""
    splits = any(part.kind is OpKind.WEIGHT_GRAD for row in program.ranks for op in row for part in op.unpacked)
    choices = list(itertools.product((False, True) if splits else (False,), _OVERRUNS))
    if sum(map(len, program.ranks)) > _MAX_OPS:
        choices = [(splits, 0.5)]
    later = delay_backward(program, num_late)
    orders = []
    for fills, overrun in choices:
        rooms = _rooms(program, costs, num_late) if fills else ()
        orders.append(VocabClock(later, algorithm, costs, rooms, overrun))
    return [order for order in orders if order.run()]


def _makespan(order: VocabClock) -> float:
    return float(f"{order.makespan:.9g}")  # without the digits in which sums of the same times may differ


def _rooms(program: Program, costs: Costs, num_more: int) -> tuple[Room, ...]:
    """Give ranks the room of the fullest, and ``num_more`` microbatches: by the costs, and with all held until W."""
    until_w = Costs.per_stage([StageCosts(act_w=1.0)] * program.num_stages)
    rooms = []
    for measure in (costs, until_w):
        stages, peak = measure.for_plan(program), max(peak_activation(program, measure))
        shares = (sum(stages[stage].act for stage in program.chunks(rank)) for rank in range(program.num_ranks))
        rooms.append(Room(stages, [peak + num_more * share for share in shares]))
    return tuple(rooms)


def _rows(order: VocabClock) -> list[list[Op]]:
    """Put the meetings into the rows.

    A rank that brings nothing to a meeting issues it where the last of those that do begins to make its part. That is
    before the meeting can take place, so that no small delay of a rank delays it; and nothing that ends by then can
    wait for what begins later, so that no circle comes of it.
    """
    rows: list[list[Op]] = [[] for _ in order.rows]
    num_done = [0] * len(order.rows)
    issued = 0
    for meeting in order.meetings:
        issued = max([issued, *(timed.started for timed in meeting.brought.values())])
        for rank, (row, ran) in enumerate(zip(rows, order.rows, strict=True)):
            own = meeting.brought.get(rank)
            while num_done[rank] < len(ran) and (ran[num_done[rank]].ended <= issued or ran[num_done[rank]] is own):
                row.append(ran[num_done[rank]].op)
                num_done[rank] += 1
            row.append(meeting.op)
    for row, ran, done in zip(rows, order.rows, num_done, strict=True):
        row += (timed.op for timed in ran[done:])
    return rows
