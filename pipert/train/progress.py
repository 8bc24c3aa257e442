"""What rank 0 keeps of every step, and shows while the run goes on."""

from __future__ import annotations

import statistics
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

from pipert.plan import Plan
from pipert.trace import Report, Trace, measure
from pipert.train.work import StepNote

T = TypeVar("T")

_NS_PER_MS = 1e6
_NUM_UNTYPICAL = 2  # first steps, which find cold caches
_NUM_LINES = 10  # where there is no terminal


class Monitor:
    """The measured steps of a run.

    Args:
        plan: what runs.
        num_tokens: tokens per step; 0 where nothing is trained.
    """

    def __init__(self, plan: Plan, num_tokens: int) -> None:
        self._plan, self._num_tokens = plan, num_tokens
        self._reports: list[Report] = []
        self._wall_s: list[float] = []
        self.losses: list[float] = []
        self.peak_activation_bytes = [0] * plan.num_ranks

    def add(self, step: int, notes: list[StepNote], wall_s: float) -> None:
        """Take in what every process noted of a step, and how long all of the step took."""
        trace = Trace.from_records(self._plan, [note.records for note in notes], step=step)
        self._reports.append(measure(trace))
        self._wall_s.append(wall_s)
        self.losses += [note.loss for note in notes if note.loss is not None][:1]  # replicas of the last stage agree
        for note in notes:
            for rank, peak in note.peak_activation_bytes.items():
                self.peak_activation_bytes[rank] = max(self.peak_activation_bytes[rank], peak)

    @property
    def num_steps(self) -> int:
        """How many steps have been added."""
        return len(self._reports)

    @property
    def typical_report(self) -> Report:
        """A late step: of the last half, the one of median length."""
        late = sorted(self._reports[len(self._reports) // 2 :], key=lambda report: report.makespan)
        return late[len(late) // 2]

    @property
    def step_time_ms(self) -> float:
        """From the first compute op of any rank to the end of the last; median over steps."""
        return statistics.median(report.makespan for report in _typical(self._reports)) / _NS_PER_MS

    @property
    def bubble_rate(self) -> float:
        """Median over steps."""
        return statistics.median(report.bubble_rate for report in _typical(self._reports))

    @property
    def compute_times_ms(self) -> list[float]:
        """The time in which a rank computes in a step, per rank; median over steps."""
        ranks = range(self._plan.num_ranks)
        reports = _typical(self._reports)
        return [statistics.median(report.compute_times[rank] for report in reports) / _NS_PER_MS for rank in ranks]

    @property
    def bubble_rates(self) -> list[float]:
        """The share of a step in which a rank does not compute, per rank; median over steps."""
        reports = _typical(self._reports)
        return [
            statistics.median(1 - report.compute_times[rank] / report.makespan for report in reports)
            for rank in range(self._plan.num_ranks)
        ]

    @property
    def tokens_per_second(self) -> float | None:
        """Over whole steps, the optimizer's work included; None where nothing is trained."""
        return self._num_tokens / statistics.median(_typical(self._wall_s)) if self._num_tokens else None

    def __str__(self) -> str:
        latest = self._reports[-1]
        parts = [f"step {latest.makespan / _NS_PER_MS:.0f} ms", f"bubble {latest.bubble_rate:.0%}"]
        if self.losses:
            parts = [f"loss {self.losses[-1]:.3f}", f"{self._num_tokens / self._wall_s[-1]:,.0f} tokens/s", *parts]
        return " · ".join(parts)


class Display:
    """Shows a monitor: a bar on a terminal, elsewhere a line now and then."""

    def __init__(self, name: str, steps: range, console: Console, *, shown: bool) -> None:
        self._steps, self._console = steps, console
        columns = (
            "{task.description}",
            BarColumn(),
            MofNCompleteColumn(),
            "{task.fields[figures]}",
            TimeElapsedColumn(),
        )
        self._progress = Progress(*columns, console=console, disable=not (shown and console.is_terminal))
        self._task = self._progress.add_task(name, total=steps.stop, completed=steps.start, figures="")

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, step: int, monitor: Monitor) -> None:
        """Show that ``step`` is done."""
        self._progress.update(self._task, completed=step + 1, figures=str(monitor))
        every = max(1, len(self._steps) // _NUM_LINES)
        if not self._console.is_terminal and ((step + 1) % every == 0 or step in (self._steps[0], self._steps[-1])):
            self._console.print(f"{step + 1}/{self._steps.stop} · {monitor}", highlight=False)


def _typical(values: list[T]) -> list[T]:
    return values[_NUM_UNTYPICAL:] or values
