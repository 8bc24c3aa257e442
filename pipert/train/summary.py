"""What a run leaves behind: ``runs/<name>/`` with summary.json, plan.json, trace.json and timeline.html."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path

from pipert.errors import ConfigError
from pipert.plan import Plan
from pipert.trace import Trace, write_chrome
from pipert.view import write_timeline


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of a run.

    Attributes:
        device: where it was trained: the GPU's name, or ``"cpu"``.
        losses: one per step; empty where nothing was trained (``--timed``).
        bitwise_equal: whether every loss, gradient and final parameter had the reference's bits; None if not asked.
        step_time_ms: median over steps of the time from the first compute op of any rank to the last.
        predicted_step_time_ms: the same, simulated.
        bubble_rate: median over steps; 1 - the busiest rank's compute time / step time.
        predicted_bubble_rate: the same, simulated.
        tokens_per_second: over whole steps, the optimizer's work included; None where nothing was trained.
        peak_activation_bytes: per rank.
    """

    schedule: str
    device: str
    num_ranks: int
    num_microbatches: int
    num_steps: int
    first_loss: float | None
    last_loss: float | None
    losses: list[float]
    bitwise_equal: bool | None
    step_time_ms: float
    predicted_step_time_ms: float
    bubble_rate: float
    predicted_bubble_rate: float
    tokens_per_second: float | None
    peak_activation_bytes: list[int]


def make_folder(runs: Path, name: str) -> Path:
    """Make the folder of a run.

    Raises:
        ConfigError: that is not possible.
    """
    folder = runs / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the folder {folder} cannot be made: {error.strerror}") from error
    return folder


def write(folder: Path, summary: Summary, plan: Plan, measured: Trace, predicted: Trace) -> None:
    """Write the files of a run, and let ``latest``, beside its folder, point to it."""
    plan.save(folder / "plan.json")
    write_chrome(folder / "trace.json", [("measured", measured), ("predicted", predicted)])
    write_timeline(folder / "timeline.html", [("planned", predicted), ("measured", measured)])
    (folder / "summary.json").write_text(json.dumps(dataclasses.asdict(summary), indent=1) + "\n")
    _point(folder.parent / "latest", folder.name)


def _point(link: Path, target: str) -> None:
    """Make or move a symbolic link in one step."""
    fresh = link.with_name(f".{link.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    os.replace(fresh, link)
