"""What the engines of a run recorded: the files of all processes, joined step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipert.errors import ConfigError
from pipert.plan import Plan
from pipert.profile.request import Request
from pipert.trace import Trace, read_chrome


@dataclass(frozen=True, slots=True)
class Recorded:
    """The profiled steps of one engine, of all its ranks.

    Attributes:
        plan: what ran.
        steps: at least one, ascending; each holds all ops.
        one_process: whether one process ran all ranks.
    """

    plan: Plan
    steps: tuple[Trace, ...]
    one_process: bool


def read(request: Request) -> list[Recorded]:
    """Read what a command left behind: one entry for each engine that ran profiled steps.

    Raises:
        ConfigError: the command made no engine, none of them ran such a step, or a file is damaged.
    """
    files = request.files()
    if not files:
        raise ConfigError(
            "nothing was profiled: the command made no pipert.Engine (or made it in a process that was not given the "
            "command's environment variables)"
        )
    found = [recorded for paths in files.values() if (recorded := _join(paths)) is not None]
    if not found:
        first, last = request.steps[0], request.steps[-1]
        raise ConfigError(
            f"nothing was profiled: an engine was made, but no step from {first} to {last} was run to its end on all "
            "ranks; give --steps A:B that the command runs"
        )
    return found


def _join(paths: Sequence[Path]) -> Recorded | None:
    """Join the files of one engine; None if no step is in all of them."""
    per_process = [{trace.step: trace for _, trace in read_chrome(path)} for path in paths]
    steps = sorted(set.intersection(*map(set, per_process)))
    if not steps:
        return None
    plan = per_process[0][steps[0]].plan
    joined = tuple(_joined(plan, [traces[step] for traces in per_process]) for step in steps)
    return Recorded(plan, joined, one_process=len(paths) == 1 and plan.num_ranks > 1)


def _joined(plan: Plan, parts: Sequence[Trace]) -> Trace:
    if any(part.plan != plan for part in parts):
        raise ConfigError(
            "the engines of the processes ran different plans; make them in the same order in every process"
        )
    return Trace.from_records(plan, [part.to_records() for part in parts], step=parts[0].step)
