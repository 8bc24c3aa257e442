"""The forward passes alone, for evaluation, on the stage placement of any schedule."""

from __future__ import annotations

from collections.abc import Sequence

from pipert.ir import Op, Program
from pipert.ops import OpKind


def forward_only(stage_ranks: Sequence[int], num_microbatches: int) -> Program:
    """Every microbatch through a rank's first stage, then every microbatch through its second, and so on.

    (stage, microbatch) ascending is an order of all ops that every rank and every edge agrees with, so no
    placement of the stages can deadlock.
    """
    stages_of_rank = [[s for s, holder in enumerate(stage_ranks) if holder == r] for r in range(max(stage_ranks) + 1)]
    ranks = tuple(
        tuple(Op(OpKind.FORWARD, stage, microbatch) for stage in stages for microbatch in range(num_microbatches))
        for stages in stages_of_rank
    )
    return Program("forward-only", tuple(stage_ranks), num_microbatches, ranks)
