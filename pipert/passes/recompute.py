"""Run the forward again before the backward, for stages that do not keep their activations."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator

from pipert.errors import ConfigError
from pipert.ir import Op, Program
from pipert.ops import OpKind


def recompute(program: Program, stages: Collection[int]) -> Program:
    """Put an ``R`` right before every ``B`` or ``I`` of ``stages``: ``0F0 0B0`` becomes ``0F0 0R0 0B0``.

    Raises:
        ConfigError: a stage that the program does not have, or one that recomputes already.
    """
    recomputing = {part.stage for ops in program.ranks for op in ops for part in op.unpacked if _is_recompute(part)}
    for stage in stages:
        if not 0 <= stage < program.num_stages:
            raise ConfigError(f"there is no stage {stage} to recompute: {program.name} has {program.num_stages} stages")
        if stage in recomputing:
            raise ConfigError(f"stage {stage} of {program.name} recomputes already")
    chosen = frozenset(stages)
    ranks = tuple(tuple(each for op in ops for each in _with_recompute(op, chosen)) for ops in program.ranks)
    return dataclasses.replace(program, ranks=ranks)


def _is_recompute(op: Op) -> bool:
    return op.kind is OpKind.RECOMPUTE


def _with_recompute(op: Op, stages: Collection[int]) -> Iterator[Op]:
    for part in op.unpacked:
        if part.stage in stages and part.kind in (OpKind.BACKWARD, OpKind.INPUT_GRAD):
            yield Op(OpKind.RECOMPUTE, part.stage, part.microbatch)
    yield op
