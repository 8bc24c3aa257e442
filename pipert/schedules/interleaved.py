"""Interleaved 1F1B: every rank holds v chunks and goes through them in groups of p microbatches.

Narayanan et al., "Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM", section 2.2.2,
arXiv 2104.04473. The order and the warm-up are Megatron's.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from pipert.ir import Op
from pipert.ops import OpKind
from pipert.schedules.one_f_one_b import one_f_one_b, one_to_one


def interleaved(rank: int, num_ranks: int, num_microbatches: int, num_chunks: int) -> list[Op]:
    """List the ops of ``rank``. With one chunk it is 1F1B.

    Where p does not divide m, none of the groups (unless m < p) is smaller than p: a smaller one would have to wait for
    its own first chunk to come around.
    """
    if num_chunks == 1:
        return one_f_one_b(rank, num_ranks, num_microbatches, num_chunks)
    groups = even_groups(num_microbatches, max(1, num_microbatches // num_ranks))
    num_warmup = (num_chunks - 1) * len(groups[0]) + 2 * (num_ranks - 1 - rank)
    return group_by_group(range(rank, num_ranks * num_chunks, num_ranks), groups, num_warmup)


def even_groups(num_microbatches: int, num_groups: int) -> list[range]:
    """Cut the microbatches into consecutive groups, as even as can be, the larger ones first."""
    size, num_larger = divmod(num_microbatches, num_groups)
    bounds = [group * size + min(group, num_larger) for group in range(num_groups + 1)]
    return [range(*ends) for ends in itertools.pairwise(bounds)]


def group_by_group(stages: Sequence[int], groups: Sequence[range], num_warmup: int) -> list[Op]:
    """Take one group of microbatches after another through all ``stages`` of a rank, alternating F and B.

    Args:
        stages: the rank's, ascending: the order of the forwards; the backwards take the reverse.
        groups: microbatches that go through one stage together.
        num_warmup: forwards before the first pair of a forward and a backward.
    """
    forwards = [Op(OpKind.FORWARD, stage, mb) for group in groups for stage in stages for mb in group]
    backwards = [Op(OpKind.BACKWARD, stage, mb) for group in groups for stage in stages[::-1] for mb in group]
    return one_to_one(forwards, backwards, num_warmup)
