"""Breadth-first: every rank holds v chunks and takes all microbatches through one of them before the next.

Lamy-Poirier, "Breadth-First Pipeline Parallelism", section 4.1, arXiv 2211.05953. A chunk's parameters are needed in
one go for the forwards and in one for the backwards, which suits sharded data parallelism.
"""

from __future__ import annotations

from pipert.ir import Op
from pipert.ops import OpKind


def breadth_first(rank: int, num_ranks: int, num_microbatches: int, num_chunks: int) -> list[Op]:
    """List the ops of ``rank``: chunk by chunk, the forwards up and the backwards down. With one chunk it is GPipe."""
    stages = range(rank, num_ranks * num_chunks, num_ranks)
    forwards = [Op(OpKind.FORWARD, stage, mb) for stage in stages for mb in range(num_microbatches)]
    backwards = [Op(OpKind.BACKWARD, stage, mb) for stage in stages[::-1] for mb in range(num_microbatches)]
    return forwards + backwards
