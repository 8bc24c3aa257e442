"""Gather and reduce the stages' parameters by the plan, for sharded data parallelism."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from pipert.errors import ConfigError
from pipert.ir import Op, Program
from pipert.ops import OpKind

_ADDS_GRADS = (OpKind.BACKWARD, OpKind.WEIGHT_GRAD)


def shard(program: Program, *, num_whole: int = 3) -> Program:
    """Put ``UNSHARD``, ``RESHARD`` and ``REDUCE_GRAD`` into the rows of ``program``.

    At every op, the stages that a rank is to compute on next are gathered or being gathered, and no others. Gradients
    are reduced once, after the last op that adds to them. With one stage at a time, ``0F0 2F0 2B0 0B0`` becomes
    ``0UNSHARD 0F0 0RESHARD 2UNSHARD 2F0 2B0 2REDUCE_GRAD 2RESHARD 0UNSHARD 0B0 0REDUCE_GRAD 0RESHARD``.

    Schedules that stay with a chunk for long (breadth-first, ZeroPP) gather seldom; that is what they are for.

    Args:
        program: compute ops only.
        num_whole: stages of a rank whose parameters it holds in whole at one time: at most so many, unless a pair of
            ops needs more. The default is one in the forward, one in the backward, and one that is gathered ahead.

    Raises:
        ConfigError: ``num_whole`` is less than 1.
    """
    if num_whole < 1:
        raise ConfigError(f"a rank computes on at least 1 whole stage at a time, not {num_whole}")
    return dataclasses.replace(program, ranks=tuple(tuple(_shard(ops, num_whole)) for ops in program.ranks))


def _shard(ops: Sequence[Op], num_whole: int) -> list[Op]:
    last_grad = {part.stage: index for index, op in enumerate(ops) for part in op.unpacked if part.kind in _ADDS_GRADS}
    row: list[Op] = []
    whole: list[int] = []
    for index, (op, upcoming) in enumerate(zip(ops, _upcoming_stages(ops), strict=True)):
        wanted = upcoming[: max(num_whole, len({part.stage for part in op.unpacked}))]
        row += [Op(OpKind.RESHARD, stage) for stage in whole if stage not in wanted]
        row += [Op(OpKind.UNSHARD, stage) for stage in wanted if stage not in whole]
        whole = wanted
        row.append(op)
        row += [Op(OpKind.REDUCE_GRAD, stage) for stage, last in last_grad.items() if last == index]
    return row + [Op(OpKind.RESHARD, stage) for stage in whole]


def _upcoming_stages(ops: Sequence[Op]) -> list[list[int]]:
    """List, for each op, the stages that it and the ops after it compute on, in the order of their first use."""
    result: list[list[int]] = []
    upcoming: list[int] = []
    for op in reversed(ops):
        for part in reversed(op.unpacked):
            upcoming = [part.stage, *(stage for stage in upcoming if stage != part.stage)]
        result.append(upcoming)
    return result[::-1]
