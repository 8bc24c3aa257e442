"""Step the optimizer without waiting for all ranks, and judge that step while the next one warms up.

Qi et al., "Zero Bubble Pipeline Parallelism", section 4, arXiv 2401.10241.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from pipert.errors import ConfigError
from pipert.ir import Op, Program
from pipert.ops import OpKind, Scope


def post_validation(program: Program) -> Program:
    """Give every rank its own end of the step, and a look back at the end of the step before.

    At the end of its row rank r gets ``rNORM`` (the gradient norms of the ranks up to it; lowering passes them on to
    rank r + 1) and ``rOPT`` (the optimizer's step, on what is known by then). After the forwards of its first stage
    with which its row begins, it gets ``rVALIDATE`` (the norm over all ranks, which lowering passes down from the last
    one) and ``rROLLBACK``, which undoes a step that should have been clipped. In 1F1B, ZB-H1 and ZB-H2 a rank has that
    norm before the first gradient reaches it, so that looking back delays nothing.

    Raises:
        ConfigError: the program does not train, has replicas of stages or passes over the vocabulary, or has these ops
            already.
    """
    ops = [op for row in program.ranks for op in row]
    if any(op.kind.scope is Scope.RANK for op in ops):
        raise ConfigError(f"{program.name} has post-validation already")
    if any(op.kind.scope is Scope.MEETING for op in ops):
        raise ConfigError(
            f"{program.name} has passes over the vocabulary, in which all ranks meet; post-validation is there to let "
            "them go their ways"
        )
    if all(part.kind is OpKind.FORWARD for op in ops for part in op.unpacked):
        raise ConfigError(f"{program.name} has no backward, so there is no optimizer's step to validate")
    if any(len(program.holders(stage)) > 1 for stage in range(program.num_stages)):
        raise ConfigError(
            f"{program.name} has replicas of its stages: adding up their gradients is a meeting of ranks, which "
            "post-validation is there to avoid"
        )
    return dataclasses.replace(program, ranks=tuple(_rows(program)))


def _rows(program: Program) -> Iterator[tuple[Op, ...]]:
    # Rank r's look back waits for those of the ranks behind it, which wait for the forwards before them: these must
    # be forwards that no rank puts behind its own look back.
    down_the_ranks = program.paths[0][: program.num_ranks] == tuple(range(program.num_ranks))
    at = len(program.ranks[0]) if down_the_ranks else 0
    for rank, ops in enumerate(program.ranks):
        others = (i for i, op in enumerate(ops) if op.kind is not OpKind.FORWARD or op.stage != rank)
        at = min(at, next(others, len(ops)))
        look_back = (Op(OpKind.VALIDATE, rank), Op(OpKind.ROLLBACK, rank))
        yield (*ops[:at], *look_back, *ops[at:], Op(OpKind.NORM, rank), Op(OpKind.OPT, rank))
