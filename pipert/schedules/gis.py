"""GIS and GIS-H: interleaved 1F1B, backwards cut in two, in the memory of 1F1B or in half that of interleaved 1F1B.

Wan et al., "PipeOffload: Improving Scalability of Pipeline Parallelism with Memory Optimization", sections 3.1 and 3.2,
arXiv 2503.01328.
"""

from __future__ import annotations

from pipert.ir import Op
from pipert.schedules.delayed_weights import delay_weights
from pipert.schedules.interleaved import even_groups, group_by_group


def gis(rank: int, num_ranks: int, num_microbatches: int, num_chunks: int) -> list[Op]:
    """List the ops of ``rank`` with groups of p microbatches, or, where p does not divide m, smaller ones."""
    num_groups = -(-num_microbatches // num_ranks)
    return _generalized(rank, num_ranks, num_chunks, even_groups(num_microbatches, num_groups))


def gis_h(rank: int, num_ranks: int, num_microbatches: int, num_chunks: int) -> list[Op]:
    """List the ops of ``rank`` with groups of ⌈p/2⌉ microbatches, or, where that does not divide m, larger ones.

    Smaller groups than that could not go around: a rank would wait for a gradient that waits for the rank's forward.
    """
    num_groups = max(1, num_microbatches // ((num_ranks + 1) // 2))
    return _generalized(rank, num_ranks, num_chunks, even_groups(num_microbatches, num_groups))


def _generalized(rank: int, num_ranks: int, num_chunks: int, groups: list[range]) -> list[Op]:
    """Hold at most (v - 1)g + p of a rank's chunks' microbatches in groups of g; every W follows its I at once."""
    num_warmup = (num_chunks - 1) * len(groups[0]) + num_ranks - 1 - rank
    stages = range(rank, num_ranks * num_chunks, num_ranks)
    return delay_weights(group_by_group(stages, groups, num_warmup), num_late=0)
