"""ZeroPP: blocks of 2p - 1 microbatches, one after the other, each an interleaved schedule without a bubble of its own.

Tang et al., "ZeroPP: Unleashing Exceptional Parallelism Efficiency through Tensor-Parallelism-Free Methodology",
section 3, arXiv 2402.03791. A rank needs the parameters of a chunk in one go for the forwards of a block and in one for
its backwards, so sharded data parallelism gathers them twice per block, not twice per microbatch.
"""

from __future__ import annotations

from pipert.ir import Op
from pipert.schedules.delayed_weights import delay_weights
from pipert.schedules.interleaved import even_groups, group_by_group


def zeropp(rank: int, num_ranks: int, num_microbatches: int, num_chunks: int) -> list[Op]:
    """List the ops of ``rank``. With one chunk and one block it is ZB-H2.

    In a block, the 2p - 1 forwards of the last chunk take as long as a microbatch's way to the last rank and back, and
    the weight gradients are late by as much as the ranks are staggered: at F = I = W, blocks follow each other without
    a gap. Where 2p - 1 does not divide m, blocks are larger, as even as can be, or one smaller.
    """
    num_blocks = max(1, min(num_microbatches, (num_microbatches + 1) // (2 * num_ranks - 1)))
    stages = range(rank, num_ranks * num_chunks, num_ranks)
    ops: list[Op] = []
    for block in even_groups(num_microbatches, num_blocks):
        num_warmup = (num_chunks - 1) * len(block) + 2 * (num_ranks - 1 - rank)
        ops += delay_weights(group_by_group(stages, [block], num_warmup), num_late=2 * rank)
    return ops
