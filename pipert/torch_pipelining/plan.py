"""The plan of what torch's user names: a schedule class of torch's or its name, one of pipert's, or a file."""

from __future__ import annotations

import dataclasses
import difflib

from pipert import schedules, sources
from pipert.errors import ConfigError
from pipert.ir import Op, Program
from pipert.lowering import compile
from pipert.ops import OpKind
from pipert.plan import Plan

TORCH_SCHEDULES = {
    "ScheduleGPipe": "gpipe",
    "Schedule1F1B": "1f1b",
    "ScheduleInterleaved1F1B": "interleaved",
    "ScheduleLoopedBFS": "breadth-first",
    "ScheduleInterleavedZeroBubble": "interleaved-zb",
    "ScheduleZBVZeroBubble": "zb-v",
    "ScheduleDualPipeV": "dualpipe-v",
}
"""Of each class of torch's, the schedule of pipert's table."""

_LOOPED_BFS = "ScheduleLoopedBFS"
_BY_NAME = {name.removeprefix("Schedule").lower(): name for name in TORCH_SCHEDULES}


def make_plan(schedule: str | type, num_ranks: int, num_stages: int, num_microbatches: int) -> Plan:
    """Return the plan of ``schedule`` for a pipeline of these sizes.

    Args:
        schedule: a class of torch's, its name (with or without ``Schedule``, in any case, as torch takes it), a name
            of pipert's, or a file: a plan, torch's CSV, or a Python file.
        num_ranks: of the process group.
        num_stages: of the pipeline.
        num_microbatches: of a step.

    Raises:
        ConfigError: an unknown schedule, sizes that it cannot have, a file for other sizes, or a plan that has what
            torch's stages have no part in: replicas, recomputation, optimizer steps.
        PlanError: a file holds no valid plan.
    """
    name = schedule if isinstance(schedule, str) else schedule.__name__
    torch_name = name if name in TORCH_SCHEDULES else _BY_NAME.get(name.removeprefix("Schedule").lower())
    if torch_name is None:
        if not isinstance(schedule, str) or not (name in schedules.names() or sources.is_file(name)):
            raise ConfigError(f"no schedule is called {name!r}; {_hint(name)}")
        target = name
    else:
        target = TORCH_SCHEDULES[torch_name]
    if sources.takes_sizes(target):
        if num_stages % num_ranks:
            raise ConfigError(f"{num_stages} stages do not spread evenly over {num_ranks} ranks")
        source = sources.load(target, ranks=num_ranks, microbatches=num_microbatches, chunks=num_stages // num_ranks)
    else:
        source = sources.load(target)
    plan = compile(_backwards_from_the_last(source.program())) if torch_name == _LOOPED_BFS else source.plan()
    _check(target, plan, num_ranks, num_stages, num_microbatches)
    return plan


def _backwards_from_the_last(program: Program) -> Program:
    """Let the backwards of each stage begin at the last microbatch, as torch's LoopedBFS does; sums follow that order.

    All forwards of a rank come before its backwards, so that the order of microbatches is free.
    """
    last = len(program.path_of) - 1
    ranks = tuple(
        tuple(op if op.kind is OpKind.FORWARD else Op(op.kind, op.stage, last - op.microbatch) for op in ops)
        for ops in program.ranks
    )
    return dataclasses.replace(program, ranks=ranks)


def _hint(name: str) -> str:
    known = [*TORCH_SCHEDULES, *schedules.names()]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}, plan files and torch's CSV"


def _check(name: str, plan: Plan, num_ranks: int, num_stages: int, num_microbatches: int) -> None:
    for what, has, wanted in (
        ("ranks", plan.num_ranks, num_ranks),
        ("stages", plan.num_stages, num_stages),
        ("microbatches", plan.num_microbatches, num_microbatches),
    ):
        if has != wanted:
            raise ConfigError(f"{name} is for {has} {what}; here are {wanted}")
    if len(plan.paths) > 1:
        raise ConfigError(f"{name} holds stages on several ranks; a PipelineStage has no replica")
    for op in plan.ops:
        if op.kind in (OpKind.OPT, OpKind.RECOMPUTE):
            raise ConfigError(
                f"{name} has {op}: the script steps its optimizer, and its modules recompute, by themselves"
            )
