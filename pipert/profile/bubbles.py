"""The bubble table: where each rank's time went, measured and predicted."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipert.costs import Costs
from pipert.errors import ConfigError
from pipert.profile.recorded import Recorded
from pipert.trace import Report, Trace, measure
from pipert.trace.table import table
from pipert.train.predict import predict

_NS_PER_MS = 1e6
_PARTS = {
    "compute": "compute",
    "exposed_p2p": "exposed p2p",
    "exposed_copies": "exposed copies",
    "crypto": "crypto",
    "idle": "idle",
}
_NONE = "–"


@dataclass(frozen=True, slots=True)
class RankTimes:
    """The parts of one rank's step, in ms; together they are the step.

    Attributes:
        compute: it computes.
        exposed_p2p: it computes nothing, and the input of its next op is on its way from another rank; or a collective
            that it waits for runs.
        exposed_copies: it computes nothing, and waits for saved activations. None: the plan moves none.
        crypto: it computes nothing, and waits for sealing or opening. None: the plan seals nothing.
        idle: it computes nothing for any other reason: what its next op needs has not been made yet, or it is done.
    """

    compute: float
    exposed_p2p: float
    exposed_copies: float | None
    crypto: float | None
    idle: float


@dataclass(frozen=True, slots=True)
class Step:
    """One step: how long it takes, in ms, and the parts of each rank's."""

    time: float
    ranks: tuple[RankTimes, ...]


@dataclass(frozen=True, slots=True)
class Bubbles:
    """The bubble table of one engine.

    Attributes:
        typical: of the measured steps the one of median length.
        measured: the medians over the measured steps, each figure by itself.
        predicted: the plan, simulated with what its ops took in the typical step; None if that step does not tell.
        predicted_trace: the simulated step; None where ``predicted`` is.
        unpredicted: why there is no prediction, if there is none.
    """

    typical: Trace
    measured: Step
    predicted: Step | None
    predicted_trace: Trace | None
    unpredicted: str | None

    def to_dict(self) -> dict[str, Any]:
        """Give the table as plain numbers, in ms."""
        plan = self.typical.plan
        sides = {"measured": self.measured, "predicted": self.predicted}
        return {
            "name": plan.name,
            "num_ranks": plan.num_ranks,
            "num_stages": plan.num_stages,
            "num_microbatches": plan.num_microbatches,
            "step_ms": {name: None if side is None else side.time for name, side in sides.items()},
            "unpredicted": self.unpredicted,
            "ranks": [
                {"rank": rank}
                | {
                    name: None if side is None else {f"{part}_ms": getattr(side.ranks[rank], part) for part in _PARTS}
                    for name, side in sides.items()
                }
                for rank in range(plan.num_ranks)
            ],
        }

    def __str__(self) -> str:
        plan, predicted = self.typical.plan, self.predicted
        beside = f"predicted {predicted.time:.2f} ms" if predicted is not None else f"not predicted: {self.unpredicted}"
        head = (
            f"{plan.name}: {plan.num_ranks} ranks, {plan.num_stages} stages, {plan.num_microbatches} microbatches · "
            f"step {self.measured.time:.2f} ms, {beside}"
        )
        columns = [("rank", [str(rank) for rank in range(plan.num_ranks)])]
        for part, title in _PARTS.items():
            columns.append((title, [_cell(self.measured, rank, part) for rank in range(plan.num_ranks)]))
            if predicted is not None and getattr(self.measured.ranks[0], part) is not None:
                columns.append(("predicted", [_cell(predicted, rank, part) for rank in range(plan.num_ranks)]))
        rows = [[title for title, _ in columns], *zip(*(cells for _, cells in columns), strict=True)]
        return f"{head}\n{table(rows)}"


def bubbles(recorded: Recorded) -> Bubbles:
    """Make the table of an engine's profiled steps."""
    reports = [measure(trace) for trace in recorded.steps]
    typical = sorted(reports, key=lambda report: report.makespan)[(len(reports) - 1) // 2].trace
    measured = _median([_step(report, 1 / _NS_PER_MS) for report in reports])
    try:
        report = predict(recorded.plan, Costs.from_trace(typical), recorded.one_process)
    except ConfigError as error:
        return Bubbles(typical, measured, None, None, str(error))
    return Bubbles(typical, measured, _step(report, 1.0), report.trace, None)


def _step(report: Report, scale: float) -> Step:
    ranks = []
    for compute, exposed in zip(report.compute_times, report.exposed_comm, strict=True):
        idle = max(0.0, report.makespan - compute - exposed)
        ranks.append(RankTimes(compute * scale, exposed * scale, None, None, idle * scale))
    return Step(report.makespan * scale, tuple(ranks))


def _median(steps: Sequence[Step]) -> Step:
    def over_steps(rank: int, part: str) -> float | None:
        values = [value for step in steps if (value := getattr(step.ranks[rank], part)) is not None]
        return statistics.median(values) if values else None

    ranks: list[dict[str, Any]] = [
        {part: over_steps(rank, part) for part in _PARTS} for rank in range(len(steps[0].ranks))
    ]
    return Step(statistics.median(step.time for step in steps), tuple(RankTimes(**parts) for parts in ranks))


def _cell(step: Step, rank: int, part: str) -> str:
    value = getattr(step.ranks[rank], part)
    return _NONE if value is None else f"{value:.2f} ms {value / step.time:6.1%}"
