"""ZB-V: a model folded into a V, no bubble when F, I and W take the same time, 1F1B's memory.

Qi et al., "Zero Bubble Pipeline Parallelism", section 6, arXiv 2401.10241.
"""

from __future__ import annotations

from collections import Counter

from pipert.ir import Op
from pipert.ops import OpKind

_KINDS = {"f": OpKind.FORWARD, "i": OpKind.INPUT_GRAD, "w": OpKind.WEIGHT_GRAD}


def zb_v(rank: int, num_ranks: int, num_microbatches: int, num_chunks: int) -> list[Op]:
    """List the ops of ``rank``, which holds a stage of the V's way down and one of its way up.

    In the pattern a small letter is the way down, a capital the way up; each letter takes the next microbatch.
    The pattern needs 2p - 1 microbatches to fill; with fewer, those that are not there are left out, and weight
    gradients have better places then.
    """
    stages = (rank, 2 * num_ranks - 1 - rank)
    up = num_ranks - rank
    length = max(num_microbatches, 2 * num_ranks - 1)
    pattern = (
        "f" * (2 * up - 1)
        + "Ff" * rank
        + "FIW" * up
        + "fiwFIW" * (length + 1 - num_ranks - up)
        + "iwFIW" * (up - 1)
        + "iI" * rank
        + "iw" * up
        + "Ww" * rank
    )
    taken: Counter[str] = Counter()
    ops: list[Op] = []
    for letter in pattern:
        if taken[letter] < num_microbatches:
            ops.append(Op(_KINDS[letter.lower()], stages[letter.isupper()], taken[letter]))
        taken[letter] += 1
    return ops
