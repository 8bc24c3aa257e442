"""Backwards cut in two, with the weight gradients a number of backwards late."""

from __future__ import annotations

from collections.abc import Sequence

from pipert.ir import Op
from pipert.ops import OpKind


def delay_weights(ops: Sequence[Op], num_late: int) -> list[Op]:
    """Cut every ``B`` of one rank into ``I`` and ``W``; the ``W`` follows ``num_late`` ``I``'s later, or at the end.

    With ``num_late`` 1, ``0B0 0F2 0B1`` becomes ``0I0 0F2 0I1 0W0 0W1``.
    """
    result: list[Op] = []
    waiting: list[Op] = []
    for op in ops:
        if op.kind is not OpKind.BACKWARD:
            result.append(op)
            continue
        result.append(Op(OpKind.INPUT_GRAD, op.stage, op.microbatch))
        waiting.append(Op(OpKind.WEIGHT_GRAD, op.stage, op.microbatch))
        if len(waiting) > num_late:
            result.append(waiting.pop(0))
    return result + waiting
