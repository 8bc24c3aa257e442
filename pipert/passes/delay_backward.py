"""Let every backward start some microbatches later, so that something else has time between forward and backward."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Sequence

from pipert.ir import Op, Program
from pipert.ops import OpKind

_STARTS_BACKWARD = (OpKind.BACKWARD, OpKind.INPUT_GRAD)
Place = tuple[int, int]
"""Where a part stands: its op's index in the row, and its own in the op."""


def delay_backward(program: Program, num_microbatches: int) -> Program:
    """Put each backward where its rank had that of ``num_microbatches`` later, and the last ones at the end.

    With one microbatch, ``0F0 0F1 0B0 0F2 0B1 0B2`` becomes ``0F0 0F1 0F2 0B0 0B1 0B2``. A rank of v chunks counts v
    backwards for a microbatch. So it holds that many microbatches more than before, and no more, at any place of its
    row. A ``W`` moves like its ``I``; an ``R`` stands right before its backward; a pair keeps its forward, and has
    another backward.

    Args:
        program: without collectives.
        num_microbatches: 0 or more.
    """
    if num_microbatches == 0:
        return program
    rows = (_delayed(ops, num_microbatches * len(program.chunks(rank))) for rank, ops in enumerate(program.ranks))
    return dataclasses.replace(program, ranks=tuple(map(tuple, rows)))


def _delayed(ops: Sequence[Op], num_late: int) -> Iterator[Op]:
    parts = {(index, number): part for index, op in enumerate(ops) for number, part in enumerate(op.unpacked)}
    backwards = [(place, part) for place, part in parts.items() if part.kind in _STARTS_BACKWARD]
    weights = {_work(part): place for place, part in parts.items() if part.kind is OpKind.WEIGHT_GRAD}
    again = {_work(part) for part in parts.values() if part.kind is OpKind.RECOMPUTE}
    filled = {place: part for place, part in parts.items() if part.kind is OpKind.FORWARD}
    behind: defaultdict[int, list[Op]] = defaultdict(list)  # the W's that stand right behind an op
    for (_, part), (place, former) in zip(backwards, backwards[num_late:], strict=False):
        filled[place] = part
        if part.kind is OpKind.INPUT_GRAD:
            weight_grad = Op(OpKind.WEIGHT_GRAD, *_work(part))
            if former.kind is OpKind.INPUT_GRAD:
                filled[weights[_work(former)]] = weight_grad
            else:
                behind[place[0]].append(weight_grad)
    for index, op in enumerate(ops):
        left = [filled[index, number] for number in range(len(op.unpacked)) if (index, number) in filled]
        yield from _recomputed(left, again)
        if len(left) == 2:
            yield Op.pair(*left)
        else:
            yield from left
        yield from behind[index]
    last = [part for _, part in backwards[max(0, len(backwards) - num_late) :]]
    for part in last:
        yield from (*_recomputed([part], again), part)
    yield from (Op(OpKind.WEIGHT_GRAD, *_work(part)) for part in last if part.kind is OpKind.INPUT_GRAD)


def _work(part: Op) -> tuple[int, int]:
    return part.stage, part.microbatch


def _recomputed(parts: Sequence[Op], again: set[tuple[int, int]]) -> Iterator[Op]:
    for part in parts:
        if part.kind in _STARTS_BACKWARD and _work(part) in again:
            yield Op(OpKind.RECOMPUTE, *_work(part))
