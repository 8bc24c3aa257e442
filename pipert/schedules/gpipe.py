"""GPipe: all forwards, then all backwards.

Huang et al., "GPipe: Efficient Training of Giant Neural Networks using Pipeline Parallelism", section 2.2,
arXiv 1811.06965.
"""

from __future__ import annotations

from pipert.ir import Op
from pipert.ops import OpKind


def gpipe(rank: int, num_ranks: int, num_microbatches: int, num_chunks: int) -> list[Op]:
    """List the ops of ``rank``."""
    kinds = (OpKind.FORWARD, OpKind.BACKWARD)
    return [Op(kind, rank, microbatch) for kind in kinds for microbatch in range(num_microbatches)]
