"""Why a step took as long as it did: where idle time went, the critical path, and the slack of the ops beside it."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipert import _core
from pipert.ops import LaneKind
from pipert.trace.report import check_whole
from pipert.trace.table import table

if TYPE_CHECKING:
    from pipert.trace.trace import Trace

_SEGMENTS_SHOWN = 32
_BESIDE_LISTED = 100


@dataclass(frozen=True, slots=True)
class IdleTimes:
    """Why a rank computes nothing; all parts together are the makespan - its compute time.

    Attributes:
        warm_up: before its first backward: what its next op needs had not been made yet.
        dependency: the same, from there to its last forward.
        drain: the same, after that; and after its last op.
        communication: what its next op needs had been made, but had not arrived and been noticed (or a collective was
            on its way): the `exposed_comm` of a report.
        overhead: all was there, and the op had not begun. 0 in a simulated step.

    Of a step that is forward only, warm-up ends with a rank's first op, and only what follows its last is drain.
    """

    warm_up: float
    dependency: float
    drain: float
    communication: float
    overhead: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.warm_up + self.dependency + self.drain + self.communication + self.overhead


@dataclass(frozen=True, slots=True)
class PathStep:
    """One op of the critical path.

    Attributes:
        op: its id. Of a transfer, the RECV, or the SEND where the path goes on with the next transfer of the edge.
        waited: from the end of the op before it (from the start of the step) to its start.
    """

    op: int
    waited: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a step took as long as it did. Times are in the unit of `trace`.

    Attributes:
        idle: one entry per rank.
        critical_path: each op followed the one before it; the times of its ops and its waits add up to the makespan.
        slack: per op, how much later it could end without making the step longer.
        trace: the step.
    """

    idle: tuple[IdleTimes, ...]
    critical_path: tuple[PathStep, ...]
    slack: array[float] = field(repr=False)
    trace: Trace = field(repr=False)

    def beside(self, count: int | None = None) -> list[int]:
        """List the compute ops off the critical path, or the first ``count`` of them, by slack and then by start."""
        on_path = {step.op for step in self.critical_path}
        lanes, op_lane = self.trace.plan.lanes, self.trace.plan.op_lane
        off_path = (op for op in range(len(self.slack)) if op not in on_path)
        ops = [op for op in off_path if lanes[op_lane[op]].kind is LaneKind.COMPUTE]
        ops.sort(key=lambda op: (self.slack[op], self.trace.start[op]))
        return ops[:count]

    def to_dict(self) -> dict[str, Any]:
        """Give the idle times, the whole critical path, and the ops beside it that have the least slack."""
        plan, start, end = self.trace.plan, self.trace.start, self.trace.end

        def op_dict(op: int) -> dict[str, Any]:
            return {"op": plan.op_text[op], "rank": plan.rank_of(op), "start": start[op], "end": end[op]}

        idle = [{name: getattr(times, name) for name in (*IdleTimes.__slots__, "total")} for times in self.idle]
        beside = [{**op_dict(op), "slack": self.slack[op]} for op in self.beside(_BESIDE_LISTED)]
        path = [{**op_dict(step.op), "waited": step.waited} for step in self.critical_path]
        return {"unit": self.trace.unit, "idle": idle, "critical_path": path, "beside": beside}

    def __str__(self) -> str:
        return f"{self._idle_table()}\n\n{self._path_table()}"

    def _scale(self) -> tuple[float, str]:
        return (1e-6, " ms") if self.trace.unit == "ns" else (1.0, "")

    def _idle_table(self) -> str:
        scale, unit = self._scale()
        plan = self.trace.plan
        critical = [0.0] * plan.num_ranks
        for step in self.critical_path:
            if plan.ops[step.op].kind.lane is LaneKind.COMPUTE:
                critical[plan.rank_of(step.op)] += self.trace.end[step.op] - self.trace.start[step.op]
        names = IdleTimes.__slots__
        rows = [("rank", "idle", *(name.replace("_", "-") for name in names), "on the critical path")]
        for rank, times in enumerate(self.idle):
            numbers = (times.total, *(getattr(times, name) for name in names), critical[rank])
            rows.append((str(rank), *(f"{number * scale:.6g}" for number in numbers)))
        return f"idle time{unit and ','}{unit}{self._uncertainty()}\n{table(rows)}"

    def _uncertainty(self) -> str:
        uncertainty_ns = max((clock.uncertainty_ns for clock in self.trace.clocks), default=0)
        return f" (the ranks' clocks agree to ±{uncertainty_ns * 1e-6:.6g} ms)" if uncertainty_ns else ""

    def _path_table(self) -> str:
        scale, unit = self._scale()
        plan, start, end = self.trace.plan, self.trace.start, self.trace.end
        computing = transferring = 0.0
        for step in self.critical_path:
            duration = end[step.op] - start[step.op]
            if plan.ops[step.op].kind.lane is LaneKind.COMPUTE:
                computing += duration
            else:
                transferring += duration
        waiting = sum(step.waited for step in self.critical_path)
        total = computing + transferring + waiting
        head = (
            f"critical path: {len(self.critical_path)} ops, {total * scale:.6g}{unit} = "
            f"{computing * scale:.6g} computing + {transferring * scale:.6g} in transfers + "
            f"{waiting * scale:.6g} waiting\n"
        )
        segments = list(self._segments())
        rows: list[tuple[str, ...]] = [("from", "to", "rank", "ops", "waited before", "nearest beside (slack)")]
        origin = min(start)
        beside = _Beside(self)
        for segment in segments[:_SEGMENTS_SHOWN]:
            first, last = segment[0].op, segment[-1].op
            lane = plan.lanes[plan.op_lane[first]]
            where = {LaneKind.SEND: f"{lane.rank}→{lane.peer}", LaneKind.RECV: f"{lane.peer}→{lane.rank}"}
            texts = plan.op_text[first] if first == last else f"{plan.op_text[first]} … {plan.op_text[last]}"
            count = "" if first == last else f" ({len(segment)} ops)"
            waited = sum(step.waited for step in segment)
            rows.append(
                (
                    f"{(start[first] - origin) * scale:.6g}",
                    f"{(end[last] - origin) * scale:.6g}",
                    where.get(lane.kind, str(lane.rank)),
                    texts + count,
                    f"{waited * scale:.6g}" if waited else "",
                    beside.nearest(start[first], end[last], scale),
                )
            )
        more = len(segments) - _SEGMENTS_SHOWN
        return (
            head + table(rows, left=(2, 3, 5)) + (f"\n… and {more} more parts: --json lists them" if more > 0 else "")
        )

    def _segments(self) -> Iterator[list[PathStep]]:
        """Cut the path where it changes lanes."""
        op_lane = self.trace.plan.op_lane
        segment: list[PathStep] = []
        for step in self.critical_path:
            if segment and op_lane[segment[-1].op] != op_lane[step.op]:
                yield segment
                segment = []
            segment.append(step)
        if segment:
            yield segment


class _Beside:
    """Finds the op off the critical path that has the least slack among those that run at a time."""

    def __init__(self, explanation: Explanation) -> None:
        self._explanation = explanation
        trace = explanation.trace
        by_rank: list[list[int]] = [[] for _ in range(trace.plan.num_ranks)]
        for op in sorted(explanation.beside(), key=lambda op: trace.start[op]):
            by_rank[trace.plan.rank_of(op)].append(op)
        self._by_rank = by_rank
        self._ends = [[trace.end[op] for op in ops] for ops in by_rank]

    def nearest(self, begin: float, end: float, scale: float) -> str:
        """Name it with its slack, in the time from ``begin`` to ``end``."""
        trace, slack = self._explanation.trace, self._explanation.slack
        found = -1
        for ops, ends in zip(self._by_rank, self._ends, strict=True):
            index = bisect_left(ends, begin)
            while index < len(ops) and trace.start[ops[index]] < end:
                if ends[index] > begin and (found < 0 or slack[ops[index]] < slack[found]):
                    found = ops[index]
                index += 1
        return "" if found < 0 else f"{trace.plan.op_text[found]} ({slack[found] * scale:.6g})"


def explain(trace: Trace) -> Explanation:
    """Explain a step, simulated or measured.

    An op follows what its lane ran before, and what it depends on. Of a measured step, the time between an op and the
    last of those is taken to be the op's own.

    Raises:
        ConfigError: an op is missing from the trace (the records of all ranks belong together).
    """
    check_whole(trace)
    ranks, path, slack = _core.explain(trace.plan.native, trace.start, trace.end)
    return Explanation(
        idle=tuple(IdleTimes(**times) for times in ranks),
        critical_path=tuple(PathStep(op, waited) for op, waited in path),
        slack=array("d", slack),
        trace=trace,
    )
