"""What several commands take: a plan by file or by schedule name, and costs."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from pipert.errors import ConfigError

if TYPE_CHECKING:
    from pipert.costs import Costs
    from pipert.plan import Plan

RANKS_HELP = "p, the number of pipeline ranks (with a schedule's name)."
MICROBATCHES_HELP = "m, the number of microbatches in a step (with a schedule's name)."
CHUNKS_HELP = "Stages per rank, where the schedule leaves a choice."
COSTS_HELP = (
    "Costs of a rank's whole share of one microbatch: F, I, W, B, R (times), p2p (latency), bandwidth, message_bytes, "
    "act (held from F to I), act_w (the part held on to W), e.g. F=1,I=1,W=1,p2p=0."
)
COSTS_FILE_HELP = "The same as a TOML file; where stages differ, one table of the array `stage` for each."
HOST_CORES_HELP = "Cores that all ranks share; a core for each rank if not given."


def load_costs(costs: str | None, costs_file: str | None, host_cores: float | None) -> Costs:
    """Read the costs that a command was given; by default 1 for each of F, I and W.

    Raises:
        ConfigError: both a text and a file are given, or one of them is wrong.
    """
    import dataclasses

    from pipert.costs import Costs

    if costs is not None and costs_file is not None:
        raise ConfigError("give --costs or --costs-file, not both")
    result = Costs.load(costs_file) if costs_file is not None else Costs.parse(costs or "")
    return result if host_cores is None else dataclasses.replace(result, host_cores=host_cores)


def load_plan(target: str, ranks: int | None, microbatches: int | None, chunks: int | None) -> Plan:
    """Make the plan of a plan file, of a CSV schedule, or of a schedule by its name.

    Raises:
        ConfigError: there is no such file or schedule, or sizes are missing.
        PlanError: the file holds no valid plan.
    """
    import pipert

    sizes = {"--ranks": ranks, "--microbatches": microbatches, "--chunks": chunks}
    if is_file_name(target):
        given = [name for name, value in sizes.items() if value is not None]
        if given:
            raise ConfigError(f"{given[0]} goes with a schedule's name; {target!r} is a file and has its own sizes")
        if target.endswith(".csv"):
            from pipert.ir.csv import from_csv

            return pipert.compile(from_csv(read_text(target), name=os.path.basename(target)))
        return pipert.Plan.load(target)
    if ranks is None or microbatches is None:
        if target in pipert.schedules.names():
            raise ConfigError(f"schedule {target!r} needs --ranks and --microbatches")
        raise ConfigError(
            f"{target!r} is neither a file nor a schedule; known are {', '.join(pipert.schedules.names())}"
        )
    program = pipert.schedules.build(target, num_ranks=ranks, num_microbatches=microbatches, num_chunks=chunks)
    return pipert.compile(program)


def is_file_name(target: str) -> bool:
    """Whether an argument means a file, and not a schedule."""
    return os.path.exists(target) or os.sep in target or target.endswith((".json", ".csv"))


def read_text(path: str) -> str:
    """Read a text file.

    Raises:
        ConfigError: it cannot be read, or is not text.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError as error:
        raise ConfigError(f"cannot read {path!r}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path!r} is not text: {error}") from error


def is_trace_file(path: str) -> bool:
    """Whether a JSON file is a trace and not a plan."""
    try:
        content: Any = json.loads(read_text(path))
    except ValueError:
        return False
    return isinstance(content, dict) and "traceEvents" in content
