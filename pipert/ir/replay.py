"""A program on an ideal clock: every op as early as its rank's order and its inputs allow, transfers for nothing."""

from __future__ import annotations

from dataclasses import dataclass

from pipert.ir.op import Op
from pipert.ir.program import Program
from pipert.ops import OpKind

_UNIT_TIMES = {
    OpKind.FORWARD: 1,
    OpKind.RECOMPUTE: 1,
    OpKind.INPUT_GRAD: 1,
    OpKind.WEIGHT_GRAD: 1,
    OpKind.BACKWARD: 2,
    OpKind.SCORE: 1,
    OpKind.SCORE_W: 1,
}
_MAKES_GRAD = (OpKind.BACKWARD, OpKind.INPUT_GRAD)

Value = tuple[bool, int, int]
"""What a stage makes of a microbatch: (is it a gradient, stage, microbatch)."""

Fact = Value | Op
"""What an op waits for: a value, or that a rank has run a pass over its shard of the vocabulary."""


@dataclass(frozen=True, slots=True)
class TimedOp:
    """An op with the steps in which it runs: from ``start`` up to, not including, ``end``."""

    op: Op
    start: int
    end: int


def replay(program: Program) -> tuple[tuple[TimedOp, ...], ...]:
    """Run what ``program`` computes for microbatches in unit times (F = I = W = R = S = T = 1, B = 2).

    Lookups in a split embedding and meetings take no time here, and are left out.

    Returns:
        For each rank these ops in order. Of a program that gets stuck, those that could run.
    """
    ranks = compute_rows(program)
    met = _before_last_backward(program)
    ready: dict[Fact, int] = {}
    rows: list[list[TimedOp]] = [[] for _ in program.ranks]
    moved = True
    while moved:
        moved = False
        for ops, row in zip(ranks, rows, strict=True):
            for op in ops[len(row) :]:
                needed = _facts(op, program, met)
                if not needed <= ready.keys():
                    break
                start = max([ready[fact] for fact in needed] + [row[-1].end if row else 0])
                row.append(TimedOp(op, start, start + _unit_time(op)))
                ready.update(dict.fromkeys((*makes(op), op), row[-1].end))
                moved = True
    return tuple(map(tuple, rows))


def compute_rows(program: Program) -> list[list[Op]]:
    """Return what each rank computes for microbatches, in order, but for the embedding that is split over the ranks."""
    return [[op for op in ops if op.unpacked or op.kind in (OpKind.SCORE, OpKind.SCORE_W)] for ops in program.ranks]


def _before_last_backward(program: Program) -> OpKind | None:
    """Return what all ranks do before the last stage's backward: T where it stands before ``VGRAD``, else S, if any."""
    for op in program.ranks[0]:
        if op.kind is OpKind.VGRAD:
            return OpKind.SCORE
        if op.kind is OpKind.SCORE_W:
            return OpKind.SCORE_W
    return None


def _facts(op: Op, program: Program, met: OpKind | None) -> set[Fact]:
    last = program.num_stages - 1
    needed: set[Fact] = {*needs(op, program.num_stages)}
    if op.kind is OpKind.SCORE:
        needed.add((False, last, op.microbatch))
    from_all = [(OpKind.SCORE, op.microbatch)] if op.kind is OpKind.SCORE_W else []
    from_all += [
        (met, part.microbatch) for part in op.unpacked if met and part.kind in _MAKES_GRAD and part.stage == last
    ]
    return needed | {Op(kind, rank, mb) for kind, mb in from_all for rank in range(program.num_ranks)}


def _unit_time(op: Op) -> int:
    return sum(_UNIT_TIMES[part.kind] for part in op.unpacked or (op,))


def makes(op: Op) -> set[Value]:
    """List what a compute op makes for other ops."""
    makers = (OpKind.FORWARD, *_MAKES_GRAD)
    return {(part.kind in _MAKES_GRAD, part.stage, part.microbatch) for part in op.unpacked if part.kind in makers}


def needs(op: Op, num_stages: int) -> set[Value]:
    """List what other ops have to make before a compute op can run; a weight gradient needs no rank but its own."""
    needed: set[Value] = set()
    for part in op.unpacked:
        if part.kind is OpKind.FORWARD and part.stage > 0:
            needed.add((False, part.stage - 1, part.microbatch))
        if part.kind in _MAKES_GRAD:
            needed.add((False, part.stage, part.microbatch))
        if part.kind in _MAKES_GRAD and part.stage < num_stages - 1:
            needed.add((True, part.stage + 1, part.microbatch))
    return needed - makes(op)
