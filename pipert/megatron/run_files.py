"""What a run leaves behind: its plan, and trace and timeline of a late step, as ``pipert train`` leaves them."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist

from pipert.engine import StepResult
from pipert.megatron.lines import say
from pipert.plan import Plan
from pipert.rendezvous import Group
from pipert.sim import simulate
from pipert.trace import Report, Trace, measure
from pipert.trace.calibrate import calibrate
from pipert.train import summary
from pipert.train.device import device_name

_NUM_LATE_STEPS = 9
_NS_PER_MS = 1e6


class _Step(NamedTuple):
    """What is kept of a step: its number, this rank's records, and its peak of activation memory."""

    number: int
    records: bytes
    peak_activation_bytes: int


class RunFiles:
    """Keeps the last training steps, and writes files of them on the first rank of the first pipeline.

    Args:
        folder: in which each run gets a folder of its own.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._group: Group | None = None
        self._plan: Plan | None = None
        self._device = torch.device("cpu")
        self._steps: deque[_Step] = deque(maxlen=_NUM_LATE_STEPS)
        self._num_steps = 0

    def keep(self, group: Group, result: StepResult, device: torch.device) -> None:
        """Take in a step that ``group`` has run, on ``device``."""
        if result.plan is not self._plan:
            self._steps.clear()
        self._group, self._plan, self._device = group, result.plan, device
        self._num_steps += 1
        self._steps.append(_Step(result.step, result.records, max(result.peak_activation_bytes.values())))

    def write(self) -> None:
        """Bring the steps together and write the files. Collective."""
        if self._group is None or self._plan is None:
            return
        steps: list[list[_Step]] = [[] for _ in range(self._plan.num_ranks)]
        dist.all_gather_object(steps, list(self._steps), group=self._group)
        self._group = None
        if dist.get_rank() != 0:
            return
        reports = sorted(map(self._report, zip(*steps, strict=True)), key=lambda report: report.makespan)
        typical = reports[len(reports) // 2]
        predicted = simulate(self._plan, calibrate(typical.trace))
        folder = summary.make_folder(self._folder, f"{time.strftime('%Y%m%d-%H%M%S')}-megatron-{self._plan.name}")
        peaks = [max(step.peak_activation_bytes for step in of_rank) for of_rank in steps]
        figures = self._figures(self._plan, typical, predicted, peaks)
        summary.write(folder, figures, self._plan, typical.trace, predicted.trace)
        say(f"{folder}: summary.json, plan.json, trace.json, timeline.html")

    def _report(self, steps: tuple[_Step, ...]) -> Report:
        assert self._plan is not None
        return measure(Trace.from_records(self._plan, [step.records for step in steps], step=steps[0].number))

    def _figures(self, plan: Plan, typical: Report, predicted: Report, peaks: list[int]) -> summary.Summary:
        return summary.Summary(
            schedule=plan.name,
            device=device_name(self._device),
            num_ranks=plan.num_ranks,
            num_microbatches=plan.num_microbatches,
            num_steps=self._num_steps,
            first_loss=None,
            last_loss=None,
            losses=[],
            bitwise_equal=None,
            step_time_ms=typical.makespan / _NS_PER_MS,
            predicted_step_time_ms=predicted.makespan,
            bubble_rate=typical.bubble_rate,
            predicted_bubble_rate=predicted.bubble_rate,
            tokens_per_second=None,
            peak_activation_bytes=peaks,
        )
