"""A profiled run: the command, what it left behind, and the tables that come of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipert.errors import ConfigError
from pipert.profile import command as commands
from pipert.profile import nsys, nsys_command, recorded
from pipert.profile.bubbles import Bubbles, bubbles
from pipert.profile.device_times import with_device_times
from pipert.profile.recorded import Recorded
from pipert.profile.request import Request
from pipert.trace import write_chrome
from pipert.train.predict import shared_cores
from pipert.view import write_timeline

_STALE = ("process-*-engine-*.json*", "nsys*.nsys-rep", "nsys*.sqlite", "nsys*.began")


@dataclass(frozen=True, slots=True)
class Run:
    """What is left of a command that has been run.

    Attributes:
        exit_code: the command's own.
        nsys: the program that it ran under; None if it ran without.
    """

    exit_code: int
    nsys: str | None


@dataclass(frozen=True, slots=True)
class Profile:
    """The profiled steps of one engine.

    Attributes:
        steps: their numbers.
        source: where the times come from, in words.
        bubbles: where each rank's time went.
        files: the trace, the timeline and the plan that were written.
    """

    steps: tuple[int, ...]
    source: str
    bubbles: Bubbles
    files: tuple[Path, ...]

    def to_dict(self) -> dict[str, Any]:
        """Give everything as plain numbers and texts."""
        files = [str(path) for path in self.files]
        return {"steps": list(self.steps), "source": self.source, "files": files, **self.bubbles.to_dict()}

    def __str__(self) -> str:
        names = ", ".join(path.name for path in self.files)
        steps = ", ".join(map(str, self.steps)) if len(self.steps) < 4 else f"{self.steps[0]} … {self.steps[-1]}"
        median = f", the median of {len(self.steps)}" if len(self.steps) > 1 else ""
        return (
            f"{self.bubbles}\n"
            f"measured: {'steps' if median else 'step'} {steps}{median}; {self.source}\n"
            f"predicted: the same plan, simulated with what its ops took in step {self.bubbles.typical.step}\n"
            f"{self.files[0].parent}: {names}"
        )


def run(command: Sequence[str], request: Request, note: Callable[[str], None], *, output_to_stderr: bool) -> Run:
    """Run a command so that its engines keep the steps, under nsys where it is there and can.

    Args:
        command: program and arguments.
        request: what the engines are asked for; its folder is made, and rid of what an earlier run left there.
        note: is told what did not work, and what is done instead.
        output_to_stderr: whether the command's standard output goes to standard error.

    Raises:
        ConfigError: the folder cannot be made, or the command cannot be started.
    """
    _make_empty(request.folder)
    command = commands.resolved(command)
    program = _nsys(note)
    if program is not None:
        line = nsys_command.under_nsys(program, command, request.folder.absolute())
        code = commands.run(line, request.environment(), output_to_stderr=output_to_stderr)
        if nsys_command.began(request.folder).exists():
            return Run(code, program)
        note(f"nsys did not start the command (exit code {code}), so it is run without; the trace is the engines' own")
    return Run(commands.run(command, request.environment(), output_to_stderr=output_to_stderr), None)


def evaluate(run: Run, request: Request, note: Callable[[str], None]) -> list[Profile]:
    """Make the tables of a run, and write its traces into the folder.

    Raises:
        ConfigError: nothing was profiled; the message says why.
    """
    found = recorded.read(request)
    exports = _exports(run.nsys, request.folder, note) if run.nsys is not None else []
    return [
        _profile(each, exports, request.folder / f"engine-{index}" if len(found) > 1 else request.folder, note)
        for index, each in enumerate(found)
    ]


def _make_empty(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for pattern in _STALE:
            for path in folder.glob(pattern):
                path.unlink()
    except OSError as error:
        raise ConfigError(f"the folder {folder} cannot be used: {error.strerror}") from error


def _nsys(note: Callable[[str], None]) -> str | None:
    try:
        return nsys.find()
    except ConfigError as error:
        note(f"{error}; the trace is the engines' own")
        return None


def _exports(program: str, folder: Path, note: Callable[[str], None]) -> list[Path]:
    """Export the reports; none of them if one fails."""
    reports = nsys_command.reports(folder)
    if not reports:
        note("nsys made no report (it makes none of a run that does not use CUDA); the trace is the engines' own")
    try:
        return [nsys.export(program, report) for report in reports]
    except ConfigError as error:
        note(f"{error}; the trace is the engines' own")
        return []


def _on_shared_cores(each: Recorded) -> str:
    num_cores = None if each.one_process else shared_cores(each.plan.num_ranks)
    if num_cores is None:
        return ""
    return f", on {num_cores} shared cores (compute holds waits for one, the prediction fewer)"


def _profile(each: Recorded, exports: Sequence[Path], folder: Path, note: Callable[[str], None]) -> Profile:
    source = "the engines' own trace" + _on_shared_cores(each)
    if exports:
        try:
            each, sources = with_device_times(each, exports)
            source = f"nsys: {sources}"
        except ConfigError as error:
            note(f"{error}; the trace is the engines' own")
    table = bubbles(each)
    folder.mkdir(exist_ok=True)
    files = (folder / "trace.json", folder / "timeline.html", folder / "plan.json")
    traces = [("measured", table.typical)]
    if table.predicted_trace is not None:
        traces.append(("predicted", table.predicted_trace))
    write_chrome(files[0], traces)
    write_timeline(files[1], [("planned" if name == "predicted" else name, trace) for name, trace in reversed(traces)])
    each.plan.save(files[2])
    return Profile(tuple(trace.step for trace in each.steps), source, table, files)
