"""ZB-H1: 1F1B's order, with weight gradients delayed into what was the bubble.

Qi et al., "Zero Bubble Pipeline Parallelism", section 2.1, arXiv 2401.10241.
"""

from __future__ import annotations

from pipert.ir import Op
from pipert.schedules.delayed_weights import delay_weights
from pipert.schedules.one_f_one_b import one_f_one_b


def zb_h1(rank: int, num_ranks: int, num_microbatches: int, num_chunks: int) -> list[Op]:
    """List the ops of ``rank``: its weight gradients lag ``rank`` microbatches behind.

    Rank r has p - r microbatches between F and I, and r between I and W: p on every rank.
    """
    return delay_weights(one_f_one_b(rank, num_ranks, num_microbatches, num_chunks), num_late=rank)
