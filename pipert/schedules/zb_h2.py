"""ZB-H2: no bubble when F, I and W take the same time, for twice the memory of 1F1B.

Qi et al., "Zero Bubble Pipeline Parallelism", section 2.2, arXiv 2401.10241.
"""

from __future__ import annotations

from pipert.ir import Op
from pipert.ops import OpKind
from pipert.schedules.delayed_weights import delay_weights
from pipert.schedules.one_f_one_b import one_to_one


def zb_h2(rank: int, num_ranks: int, num_microbatches: int, num_chunks: int) -> list[Op]:
    """List the ops of ``rank``: more forwards fill the time until its first backward, and weight gradients the end.

    Rank r has 2(p - r) - 1 microbatches between F and I, and 2r between I and W: 2p - 1 on every rank.
    """
    forwards = [Op(OpKind.FORWARD, rank, microbatch) for microbatch in range(num_microbatches)]
    backwards = [Op(OpKind.BACKWARD, rank, microbatch) for microbatch in range(num_microbatches)]
    ops = one_to_one(forwards, backwards, num_warmup=2 * (num_ranks - 1 - rank))
    return delay_weights(ops, num_late=2 * rank)
