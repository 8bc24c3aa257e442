"""ZB-H1: 1F1B's order, with weight gradients delayed into what was the bubble.

Qi et al., "Zero Bubble Pipeline Parallelism", section 2.1, arXiv 2401.10241.
"""

from __future__ import annotations

from pipert.ir import Op
from pipert.ops import OpKind
from pipert.schedules.one_f_one_b import one_f_one_b


def zb_h1(rank: int, num_ranks: int, num_microbatches: int, num_chunks: int) -> list[Op]:
    """List the ops of ``rank``: its weight gradients lag ``rank`` microbatches behind.

    Rank r has p - r microbatches between F and I, and r between I and W: p on every rank.
    """
    ops: list[Op] = []
    for op in one_f_one_b(rank, num_ranks, num_microbatches, num_chunks):
        if op.kind is OpKind.FORWARD:
            ops.append(op)
            continue
        ops.append(Op(OpKind.INPUT_GRAD, rank, op.microbatch))
        if op.microbatch >= rank:
            ops.append(Op(OpKind.WEIGHT_GRAD, rank, op.microbatch - rank))
    num_late = min(rank, num_microbatches)
    return ops + [Op(OpKind.WEIGHT_GRAD, rank, mb) for mb in range(num_microbatches - num_late, num_microbatches)]
