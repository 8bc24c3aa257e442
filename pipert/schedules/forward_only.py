"""The forward passes alone, for evaluation, on the stage placement of any schedule."""

from __future__ import annotations

from collections.abc import Sequence

from pipert.ir import Op, Program
from pipert.ops import OpKind


def forward_only(paths: Sequence[Sequence[int]], path_of: Sequence[int]) -> Program:
    """Every microbatch through a rank's first stage, then every microbatch through its second, and so on.

    (stage, microbatch) ascending is an order of all ops that every rank and every edge agrees with, so no
    placement of the stages can deadlock.
    """
    ranks: list[list[Op]] = [[] for _ in range(1 + max(map(max, paths)))]
    for stage in range(len(paths[0])):
        for microbatch, path in enumerate(path_of):
            ranks[paths[path][stage]].append(Op(OpKind.FORWARD, stage, microbatch))
    return Program("forward-only", tuple(map(tuple, paths)), tuple(path_of), tuple(map(tuple, ranks)))
