"""The command line that runs a command under nsys: around a launcher of one's own, around each rank of torchrun."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

_TORCHRUN_MODULES = ("torch.distributed.run", "torch.distributed.launch")
_REPORT = "nsys"

# Runs $@ after a note that it came to that.
_BEGIN = ': > "$0" && exec "$@"'


def under_nsys(nsys: str, command: Sequence[str], folder: Path) -> list[str]:
    """Return the command under nsys, which captures what lies between cudaProfilerStart and cudaProfilerStop.

    Each rank of torchrun gets an nsys and so a report of its own: it starts and ends for itself. Another launcher, or a
    single process, has one around it, which sees all its children.

    Args:
        nsys: the program.
        command: program and arguments.
        folder: where the reports and `began` go.
    """
    ranks = _torchrun(command)
    if ranks is None:
        return [*_profile(nsys, folder, _REPORT), *command]
    launcher, rank_command = ranks
    return [*launcher, *_profile(nsys, folder, f"{_REPORT}-rank%q{{RANK}}"), *rank_command]


def began(folder: Path) -> Path:
    """Return the file that is there once nsys has begun to run the command, of whatever rank."""
    return folder / f"{_REPORT}.began"


def reports(folder: Path) -> list[Path]:
    """Return the reports that nsys made."""
    return sorted(folder.glob(f"{_REPORT}*.nsys-rep"))


def _profile(nsys: str, folder: Path, name: str) -> list[str]:
    return [
        nsys,
        "profile",
        "--trace=cuda,nvtx",
        "--sample=none",
        "--cpuctxsw=none",
        "--cuda-graph-trace=node",
        "--capture-range=cudaProfilerApi",
        "--capture-range-end=stop",
        "--force-overwrite=true",
        f"--output={folder / name}",
        "/bin/sh",
        "-c",
        _BEGIN,
        str(began(folder)),
    ]


def _torchrun(command: Sequence[str]) -> tuple[list[str], list[str]] | None:
    """Split a command of torchrun into the launcher, told to run any program, and what a rank runs."""
    if Path(command[0]).name == "torchrun":
        launcher, arguments, python = list(command[:1]), list(command[1:]), sys.executable
    elif len(command) > 2 and command[1] == "-m" and command[2] in _TORCHRUN_MODULES:
        launcher, arguments, python = list(command[:3]), list(command[3:]), command[0]
    else:
        return None
    parsed = _parse_torchrun(arguments)
    if parsed is None:
        return None
    script = [parsed.training_script, *parsed.training_script_args]
    options = arguments[: len(arguments) - len(script)]
    options = [option for option in options if option not in ("-m", "--module", "--no-python", "--no_python", "--")]
    if not parsed.no_python:
        python = os.environ.get("PYTHON_EXEC", python)
        script = [python, "-u", *(["-m"] if parsed.module else []), *script]
    return [*launcher, *options, "--no-python"], script


def _parse_torchrun(arguments: Sequence[str]) -> argparse.Namespace | None:
    """Parse as torchrun does; None if it would refuse, which it then says itself."""
    from torch.distributed.run import get_args_parser

    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            return get_args_parser().parse_args(list(arguments))
    except SystemExit:
        return None
