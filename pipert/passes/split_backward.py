"""Cut every full backward into its two halves."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from pipert.ir import Op, Program
from pipert.ops import OpKind


def split_backward(program: Program) -> Program:
    """Replace every ``B`` by ``I`` and, right after it, ``W``; inside a pair by ``I``, with the ``W`` after the pair.

    ``0F0 0B0`` becomes ``0F0 0I0 0W0``; ``(0F1;0B0)OVERLAP_F_B`` becomes ``(0F1;0I0)OVERLAP_F_B 0W0``.
    """
    ranks = tuple(tuple(half for op in ops for half in _split(op)) for ops in program.ranks)
    return dataclasses.replace(program, ranks=ranks)


def _split(op: Op) -> Iterator[Op]:
    if not op.unpacked:
        yield op
        return
    halves = [_as(OpKind.INPUT_GRAD, part) for part in op.unpacked]
    yield Op.pair(*halves) if op.parts else halves[0]
    for part in op.unpacked:
        if part.kind is OpKind.BACKWARD:
            yield Op(OpKind.WEIGHT_GRAD, part.stage, part.microbatch)


def _as(kind: OpKind, op: Op) -> Op:
    return Op(kind, op.stage, op.microbatch) if op.kind is OpKind.BACKWARD else op
