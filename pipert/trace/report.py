"""The figures of a trace: makespan, bubble, peaks. One implementation for prediction and measurement."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from pipert import _core
from pipert.errors import ConfigError
from pipert.trace.table import table

if TYPE_CHECKING:
    from pipert.costs import Costs
    from pipert.solve.bound import Bound
    from pipert.trace.trace import Trace


@dataclass(frozen=True, slots=True)
class Report:
    """What one step of a plan amounts to. Times are in the unit of `trace`.

    Attributes:
        makespan: end of the last compute op or collective of any rank, from the start of the first.
        rank_spans: per rank, end of its last compute op - start of its first.
        compute_times: per rank, the time in which it computes.
        peak_activation: per rank, the most that it holds at one time, in the unit of the costs.
        exposed_comm: per rank, the time in which it computes nothing and the input of its next op is on the way: that
            input has been made, but has not arrived and been noticed yet; or a collective that it waits for runs.
        trace: the times that all this is taken from.
        costs: what the step was simulated with; None of a measured step.
        memory_limit: what its ranks were to keep, if anything.
    """

    makespan: float
    rank_spans: tuple[float, ...]
    compute_times: tuple[float, ...]
    peak_activation: tuple[float, ...]
    exposed_comm: tuple[float, ...]
    trace: Trace
    costs: Costs | None = field(default=None, repr=False)
    memory_limit: float | None = None

    @property
    def num_ops(self) -> int:
        """The number of ops in the plan, transfers included."""
        return self.trace.plan.num_ops

    @property
    def longest_rank_span(self) -> float:
        """The largest of `rank_spans`."""
        return max(self.rank_spans)

    @property
    def bubble_rate(self) -> float:
        """1 - the largest compute time of any rank / `makespan`."""
        return bubble(max(self.compute_times), self.makespan)

    @property
    def bubble_rate_span(self) -> float:
        """The same over `longest_rank_span`: the bubble if the optimizer does not synchronise the ranks."""
        return bubble(max(self.compute_times), self.longest_rank_span)

    @property
    def lower_bound(self) -> Bound | None:
        """What no order of the same ops on the same ranks, within the limit, goes below; None of a measured step."""
        if self.costs is None:
            return None
        from pipert.solve.bound import lower_bound

        return lower_bound(self.trace.plan, self.costs, self.memory_limit)

    def to_dict(self) -> dict[str, Any]:
        """Give the figures as plain numbers and lists, without the trace and the costs."""
        plan, lower_bound = self.trace.plan, self.lower_bound
        return {
            "name": plan.name,
            "num_ranks": plan.num_ranks,
            "num_stages": plan.num_stages,
            "num_microbatches": plan.num_microbatches,
            "num_ops": self.num_ops,
            "unit": self.trace.unit,
            "makespan": self.makespan,
            "longest_rank_span": self.longest_rank_span,
            "lower_bound": None if lower_bound is None else asdict(lower_bound),
            "bubble_rate": self.bubble_rate,
            "bubble_rate_span": self.bubble_rate_span,
            "rank_spans": list(self.rank_spans),
            "compute_times": list(self.compute_times),
            "peak_activation": list(self.peak_activation),
            "exposed_comm": list(self.exposed_comm),
        }

    def __str__(self) -> str:
        plan, lower_bound = self.trace.plan, self.lower_bound
        scale, unit = (1e-6, " ms") if self.trace.unit == "ns" else (1.0, "")
        bound = "" if lower_bound is None else f" (no order is below {lower_bound.makespan * scale:.6g})"
        head = (
            f"{plan.name}: {plan.num_ranks} ranks, {plan.num_stages} stages, {plan.num_microbatches} microbatches, "
            f"{self.num_ops} ops\n"
            f"makespan {self.makespan * scale:.6g}{unit}{bound} · bubble {self.bubble_rate:.2%} · "
            f"over the longest rank's span ({self.longest_rank_span * scale:.6g}{unit}) {self.bubble_rate_span:.2%} · "
            f"peak activation {max(self.peak_activation):.6g}\n"
        )
        rows: list[tuple[str, ...]] = [("rank", "compute", "span", "idle", "exposed comm", "peak activation")]
        columns = zip(self.compute_times, self.rank_spans, self.exposed_comm, self.peak_activation, strict=True)
        for rank, (compute, span, exposed, peak) in enumerate(columns):
            times = (compute * scale, span * scale, (self.makespan - compute) * scale, exposed * scale, peak)
            rows.append((str(rank), *(f"{value:.6g}" for value in times)))
        return head + table(rows)


def measure(trace: Trace, costs: Costs | None = None) -> Report:
    """Compute the figures of a trace, simulated or measured.

    Args:
        trace: a whole step; every op must have been recorded.
        costs: only its activation sizes are used; by default a rank holds 1 per microbatch from F to I.

    Raises:
        ConfigError: an op is missing from the trace (the records of all ranks belong together), or the costs are for
            another number of stages.
    """
    if costs is None:
        from pipert.costs import Costs

        costs = Costs.per_rank()
    check_whole(trace)
    stages = costs.for_plan(trace.plan)
    figures = _core.measure(
        trace.plan.native,
        trace.start,
        trace.end,
        act=[stage.act for stage in stages],
        act_w=[stage.act_w for stage in stages],
        act_kept=[stage.act_kept for stage in stages],
        act_s=costs.vocab.act_s if costs.vocab else 0.0,
    )
    return Report(
        makespan=figures["makespan"],
        rank_spans=tuple(figures["rank_spans"]),
        compute_times=tuple(figures["compute_times"]),
        peak_activation=tuple(figures["peak_activation"]),
        exposed_comm=tuple(figures["exposed_comm"]),
        trace=trace,
    )


def check_whole(trace: Trace) -> None:
    """Refuse a trace that lacks ops.

    Raises:
        ConfigError: naming the first of them.
    """
    if math.isnan(sum(trace.end)):  # as it is if one of them is
        missing = next(op for op, end in enumerate(trace.end) if math.isnan(end))
        rank, text = trace.plan.rank_of(missing), trace.plan.op_text[missing]
        raise ConfigError(
            f"the trace lacks {text} of rank {rank}: join the records of all ranks", rank=rank, op=text, step=trace.step
        )


def bubble(compute_time: float, span: float) -> float:
    """Return the share of ``span`` in which nothing is computed; 0 of no time."""
    return 1 - compute_time / span if span > 0 else 0.0
