"""Move weight gradients to where a rank would wait, and keep every other op in its place.

Weight gradients are what a schedule can move freely: nothing waits for them, and all that they cost is memory (Qi et
al., "Zero Bubble Pipeline Parallelism", section 3, arXiv 2401.10241).
"""

from __future__ import annotations

import dataclasses
import heapq
from collections import deque

from pipert.activation import Room, peak_activation
from pipert.costs import Costs, StageCosts
from pipert.ir import Op, Program
from pipert.ir.replay import Value, makes, needs
from pipert.ops import OpKind

_ROUNDING = 1e-9


def fill_weights(program: Program, costs: Costs, *, overrun: float = 0.0, keep_peak: bool = True) -> Program:
    """Replay ``program`` on a clock, and run a rank's oldest ``W`` whenever its next other op is not ready.

    The other ops keep their order on every rank, and the ``W``'s take that of the ``I``'s, so no program can come to
    wait in a circle that did not before. The clock knows the times of the ops and the latencies of the transfers.

    Args:
        program: one whose backwards are cut in two.
        costs: per stage, or of a rank's whole share.
        overrun: how much of a ``W``, from 0 to 1, may be left to do when the next other op gets ready.
        keep_peak: whether a ``W`` goes before an ``F`` that would exceed the most that any rank of ``program`` holds,
            counted in the way of ``costs``, and with every activation held until its ``W`` too.
    """
    return _Fill(program, costs, overrun, keep_peak).run()


class _Fill:
    """The clock; lists are per rank."""

    def __init__(self, program: Program, costs: Costs, overrun: float, keep_peak: bool) -> None:
        self.program = program
        self.costs = costs
        self.stages = costs.for_plan(program)
        self.overrun = overrun
        until_w = Costs.per_stage([StageCosts(act_w=1.0)] * program.num_stages)
        self.rooms = [_room(program, measure) for measure in (costs, until_w)] if keep_peak else []
        self.todo = [deque(op for op in ops if op.kind is not OpKind.WEIGHT_GRAD) for ops in program.ranks]
        self.delayed: list[deque[Op]] = [deque() for _ in program.ranks]  # the W's that could run, oldest first
        self.done: list[list[Op]] = [[] for _ in program.ranks]
        self.free_at = [0.0] * program.num_ranks
        self.made_at: dict[Value, float] = {}  # known as soon as its op has started
        self.waiting: dict[Value, list[int]] = {}  # ranks to look at again when its op starts
        self.events = [(0.0, rank) for rank in range(program.num_ranks)]

    def run(self) -> Program:
        while self.events:
            now, rank = heapq.heappop(self.events)
            if self.free_at[rank] <= now:
                self._decide(rank, now)
        return dataclasses.replace(self.program, ranks=tuple(map(tuple, self.done)))

    def _decide(self, rank: int, now: float) -> None:
        """Start an op on an idle rank, or make a note of when to look again."""
        todo, delayed = self.todo[rank], self.delayed[rank]
        if not todo:
            if delayed:
                self._start(rank, delayed.popleft(), now)
            return
        missing, ready_at = self._inputs(rank, todo[0], now)
        if missing is None and ready_at <= now:
            has_room = all(room.is_there(rank, todo[0]) for room in self.rooms)
            self._start(rank, todo.popleft() if has_room or not delayed else delayed.popleft(), now)
        elif delayed and now + self._time(rank, delayed[0]) * (1 - self.overrun) <= ready_at * (1 + _ROUNDING):
            self._start(rank, delayed.popleft(), now)
        elif missing is not None:
            self.waiting.setdefault(missing, []).append(rank)
        else:
            heapq.heappush(self.events, (ready_at, rank))

    def _inputs(self, rank: int, op: Op, now: float) -> tuple[Value | None, float]:
        """Find an input whose op has not started, if there is one, and when at the earliest all inputs are there."""
        missing, ready_at = None, 0.0
        for value in needs(op, self.program.num_stages):
            is_grad, stage, microbatch = value
            source = self.program.rank_of(stage, microbatch)
            if value in self.made_at:
                made_at = self.made_at[value]
            else:
                missing = value
                kind = OpKind.INPUT_GRAD if is_grad else OpKind.FORWARD
                made_at = now + self._time(source, Op(kind, stage, microbatch))
            ready_at = max(ready_at, made_at + (self.costs.transfer(source, rank)[0] if source != rank else 0.0))
        return missing, ready_at

    def _start(self, rank: int, op: Op, now: float) -> None:
        self.free_at[rank] = end = now + self._time(rank, op)
        self.done[rank].append(op)
        for room in self.rooms:
            room.take(rank, op)
        for part in op.unpacked:
            if part.kind is OpKind.INPUT_GRAD:
                self.delayed[rank].append(Op(OpKind.WEIGHT_GRAD, part.stage, part.microbatch))
        for value in makes(op):
            self.made_at[value] = end
            for waiting in self.waiting.pop(value, ()):
                heapq.heappush(self.events, (now, waiting))
        heapq.heappush(self.events, (end, rank))

    def _time(self, rank: int, op: Op) -> float:
        return self.costs.op_time(op, rank, self.stages)


def _room(program: Program, costs: Costs) -> Room:
    """Give every rank as much room as the fullest rank of ``program`` needs."""
    return Room(costs.for_plan(program), [max(peak_activation(program, costs))] * program.num_ranks)
