"""``pipert verify-dropin``: the first steps of a script, by Megatron's own schedule and by pipert's, compared."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipert.errors import PipertError
from pipert.megatron.options import Options
from pipert.megatron.script import check_script

TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class Run:
    """One of the two runs.

    Attributes:
        step_time_ms: median over the steps after the first (if there are any) of the slowest rank's call.
        peak_memory_bytes: of the rank that needed most.
    """

    step_time_ms: float
    peak_memory_bytes: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """What came out.

    Attributes:
        megatron: the run with Megatron's own schedule.
        pipert: the run with pipert's.
        num_losses: compared, over all steps, and
        differing_losses: how many of them have other bits, per step.
        num_gradients: compared, over all steps and ranks, and
        differing_gradients: per step, name → norm of the difference over the norm, of those with other bits.
        copied_parameters: how many parameters another placement would have initialised differently.
    """

    megatron: Run
    pipert: Run
    num_losses: int
    differing_losses: list[int]
    num_gradients: int
    differing_gradients: list[dict[str, float]]
    copied_parameters: int

    @property
    def equal(self) -> bool:
        """Whether every loss and gradient has the same bits."""
        return not any(self.differing_losses) and not any(self.differing_gradients)

    @property
    def worst(self) -> float:
        """The largest relative norm of a difference."""
        return max((value for step in self.differing_gradients for value in step.values()), default=0.0)

    @property
    def first_step_equal(self) -> bool:
        """Whether the first step, which no optimizer has touched, has the same bits."""
        return not self.differing_losses[0] and not self.differing_gradients[0]

    @property
    def passes(self) -> bool:
        """Whether what differs does so by design: from the second step on, and by rounding."""
        return self.equal or (self.first_step_equal and self.worst <= TOLERANCE)


def verify(script: list[str], options: Options, *, num_ranks: int, num_steps: int) -> Comparison:
    """Run the first steps of ``script`` twice under torchrun, and compare.

    Args:
        script: the script and its arguments.
        options: of the second run.
        num_ranks: processes to start on this machine.
        num_steps: training steps.

    Raises:
        PipertError: one of the runs failed, or ended before its steps were done.
        ConfigError: there is no such script.
    """
    check_script(script)
    with tempfile.TemporaryDirectory(prefix="pipert-verify-") as folder:
        for compares in (False, True):
            _run(Path(folder), script, options, num_ranks, num_steps, compares=compares)
        return _compare(_read(Path(folder), "first", num_ranks), _read(Path(folder), "second", num_ranks))


def _run(folder: Path, script: list[str], options: Options, num_ranks: int, num_steps: int, *, compares: bool) -> None:
    settings = {
        "folder": str(folder),
        "steps": num_steps,
        "compares": compares,
        "options": {
            "schedule": options.schedule,
            "costs": options.costs,
            "memory_limit": options.memory_limit,
            "timeout_ms": options.timeout_ms,
        },
    }
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
    command = [*launcher, "-m", "pipert.megatron.verify_rank", json.dumps(settings), *script]
    status = subprocess.run(command, stdout=sys.stderr).returncode
    which = "pipert's" if compares else "Megatron's own"
    if status != 0:
        raise PipertError(f"the run with {which} schedule failed with exit code {status}; see its output above")
    if not (folder / f"{'second' if compares else 'first'}-0.json").exists():
        raise PipertError(f"the run with {which} schedule ended before its {num_steps} training step(s)")


def _read(folder: Path, run: str, num_ranks: int) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{run}-{rank}.json").read_text()) for rank in range(num_ranks)]


def _compare(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> Comparison:
    steps = list(zip(*(rank["steps"] for rank in second), strict=True))
    return Comparison(
        megatron=_figures(first),
        pipert=_figures(second),
        num_losses=sum(rank["num_losses"] for step in steps for rank in step),
        differing_losses=[sum(rank["differing_losses"] for rank in step) for step in steps],
        num_gradients=sum(rank["num_gradients"] for step in steps for rank in step),
        differing_gradients=[
            {name: value for rank in step for name, value in rank["differing_gradients"].items()} for step in steps
        ],
        copied_parameters=sum(rank["copied_parameters"] for rank in second),
    )


def _figures(ranks: list[dict[str, Any]]) -> Run:
    slowest = [max(rank["time_ms"] for rank in step) for step in zip(*(rank["steps"] for rank in ranks), strict=True)]
    return Run(statistics.median(slowest[1:] or slowest), max(rank["peak_memory_bytes"] for rank in ranks))
