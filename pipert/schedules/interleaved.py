"""Interleaved 1F1B: every rank holds v chunks and goes through them in groups of p microbatches.

Narayanan et al., "Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM", section 2.2.2,
arXiv 2104.04473. The order and the warm-up are Megatron's.
"""

from __future__ import annotations

import itertools

from pipert.ir import Op
from pipert.ops import OpKind
from pipert.schedules.one_f_one_b import one_f_one_b, one_to_one


def interleaved(rank: int, num_ranks: int, num_microbatches: int, num_chunks: int) -> list[Op]:
    """List the ops of ``rank``. With one chunk it is 1F1B.

    Where p does not divide m, the groups are as even as can be, the larger ones first, and none (unless m < p) is
    smaller than p: a smaller one would have to wait for its own first chunk to come around.
    """
    if num_chunks == 1:
        return one_f_one_b(rank, num_ranks, num_microbatches, num_chunks)
    num_groups = max(1, num_microbatches // num_ranks)
    size, num_larger = divmod(num_microbatches, num_groups)
    bounds = [group * size + min(group, num_larger) for group in range(num_groups + 1)]
    groups = [range(*ends) for ends in itertools.pairwise(bounds)]
    chunks = range(num_chunks)

    def ops(kind: OpKind, order: range) -> list[Op]:
        return [Op(kind, chunk * num_ranks + rank, mb) for group in groups for chunk in order for mb in group]

    num_warmup = (num_chunks - 1) * len(groups[0]) + 2 * (num_ranks - 1 - rank)
    return one_to_one(ops(OpKind.FORWARD, chunks), ops(OpKind.BACKWARD, chunks[::-1]), num_warmup)
