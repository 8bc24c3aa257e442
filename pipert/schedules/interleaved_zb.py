"""Interleaved 1F1B with its backwards cut in two, and weight gradients delayed into what was the bubble.

The groups of interleaved 1F1B (Narayanan et al., "Efficient Large-Scale Language Model Training on GPU Clusters Using
Megatron-LM", section 2.2.2, arXiv 2104.04473) with a warm-up and delays between those of ZB-H1 and ZB-H2 (Qi et al.,
"Zero Bubble Pipeline Parallelism", sections 2.1 and 2.2, arXiv 2401.10241).
"""

from __future__ import annotations

from pipert.ir import Op
from pipert.schedules.delayed_weights import delay_weights
from pipert.schedules.interleaved import even_groups, group_by_group


def interleaved_zb(rank: int, num_ranks: int, num_microbatches: int, num_chunks: int) -> list[Op]:
    """List the ops of ``rank``.

    ZB-H1 warms up with one more forward from each rank to the one before it, ZB-H2 with two. Here it is two for the
    ``extra`` ranks next to the last one, which lengthens no step, and one for the others. (PyTorch's
    ``ScheduleInterleavedZeroBubble`` has no extra.) Weight gradients are late by what a rank warms up less than the
    first.
    """
    groups = even_groups(num_microbatches, max(1, num_microbatches // num_ranks))
    extra = _extra_warmup(num_ranks, len(groups[0]))
    ahead = num_ranks - 1 - rank + min(num_ranks - 1 - rank, extra)
    stages = range(rank, num_ranks * num_chunks, num_ranks)
    ops = group_by_group(stages, groups, (num_chunks - 1) * len(groups[0]) + ahead)
    return delay_weights(ops, num_late=num_ranks - 1 + extra - ahead)


def _extra_warmup(num_ranks: int, group_size: int) -> int:
    """How much more the first rank can warm up before its groups come around late; about 2p/3 with groups of p.

    The last rank starts its backwards so much later, and reaches the forwards of the next group so much later too,
    while the first rank already waits for them. The slope is from F = I = W.
    """
    return max(0, min(num_ranks - 1, (4 * group_size - 2 * num_ranks + 1) // 3))
