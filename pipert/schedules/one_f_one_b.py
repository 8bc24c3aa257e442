"""1F1B: each rank starts its backwards as early as it can, and alternates.

Narayanan et al., "Memory-Efficient Pipeline-Parallel DNN Training" (PipeDream-Flush), section 3.2, arXiv 2006.09503.
"""

from __future__ import annotations

from pipert.ir import Op
from pipert.ops import OpKind


def one_f_one_b(rank: int, num_ranks: int, num_microbatches: int, num_chunks: int) -> list[Op]:
    """List the ops of ``rank``: p - 1 - rank forwards of warm-up, then one forward, one backward."""
    forwards = [Op(OpKind.FORWARD, rank, microbatch) for microbatch in range(num_microbatches)]
    backwards = [Op(OpKind.BACKWARD, rank, microbatch) for microbatch in range(num_microbatches)]
    return one_to_one(forwards, backwards, num_warmup=num_ranks - 1 - rank)


def one_to_one(forwards: list[Op], backwards: list[Op], num_warmup: int) -> list[Op]:
    """``num_warmup`` forwards, then one forward and one backward in turn, then the backwards that are left."""
    num_warmup = min(num_warmup, len(forwards))
    steady = [op for pair in zip(forwards[num_warmup:], backwards, strict=False) for op in pair]
    return forwards[:num_warmup] + steady + backwards[len(forwards) - num_warmup :]
