"""When each op of a plan started and ended."""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from pipert.errors import ConfigError

if TYPE_CHECKING:
    from pipert.plan import Plan

TimeUnit = Literal["cost", "ns"]

_RECORD = struct.Struct("<IIqqq")  # the executor's: op, lane, ready, start, end (ns of CLOCK_MONOTONIC)


@dataclass(frozen=True, slots=True)
class RankClock:
    """How a rank's clock stands to the clock of the trace, in nanoseconds.

    Attributes:
        offset_ns: what the rank's clock shows more; it has been subtracted from the rank's times.
        uncertainty_ns: differences between ranks that are smaller than this mean nothing.
    """

    offset_ns: int = 0
    uncertainty_ns: int = 0


@dataclass(frozen=True, slots=True)
class Trace:
    """The times of one step of a plan, predicted or measured.

    The columns have one entry per op of the plan, in the order of its rows; NaN where the op was not recorded (a rank
    by itself records only its own ops). Times count from ``origin_ns``.

    Attributes:
        plan: the plan that ran.
        start: when each op began to run.
        end: when it was done.
        ready: when its lane began to wait for it; ``None`` in a simulated trace.
        unit: ``"cost"``, the unit of the costs (a simulated trace), or ``"ns"`` (a measured one).
        step: the training step.
        origin_ns: time 0 of the columns, on the clock of the trace; 0 in a simulated trace.
        clocks: one entry per rank, or empty if all ranks read the same clock.
    """

    plan: Plan
    start: array[float] = field(repr=False)
    end: array[float] = field(repr=False)
    ready: array[float] | None = field(default=None, repr=False)
    unit: TimeUnit = "cost"
    step: int = 0
    origin_ns: int = field(default=0, repr=False)
    clocks: tuple[RankClock, ...] = ()

    @classmethod
    def from_records(
        cls, plan: Plan, records: Iterable[bytes], *, step: int = 0, clocks: tuple[RankClock, ...] = ()
    ) -> Trace:
        """Make the measured trace of one step from what the executors of its ranks recorded.

        Args:
            plan: the plan that ran.
            records: ``Executor.trace()`` of each process; together they may cover all ranks or some.
            step: the training step.
            clocks: one entry per rank; empty if all ranks are on one machine and so read the same clock.

        Raises:
            ConfigError: a record is cut short, names an op that the plan does not have, or comes twice.
        """
        rows = sorted(row for chunk in records for row in _rows(plan, chunk, clocks))
        origin = min((ready for _, ready, _, _ in rows), default=0)
        ready, start, end = (array("d", [math.nan]) * plan.num_ops for _ in range(3))
        previous = -1
        for op, op_ready, op_start, op_end in rows:
            if op == previous:
                raise ConfigError(f"op {plan.op_text[op]} is recorded twice: records of one step belong together")
            previous = op
            ready[op], start[op], end[op] = op_ready - origin, op_start - origin, op_end - origin
        return cls(plan, start, end, ready, "ns", step, origin, clocks)

    def to_records(self) -> bytes:
        """Give the recorded ops in the form that `from_records` takes, to be sent to another process.

        Raises:
            ConfigError: this is a simulated trace.
        """
        if self.ready is None:
            raise ConfigError("only a measured trace has records")
        parts = []
        for op in self.recorded():
            shift = self.origin_ns + (self.clocks[self.plan.rank_of(op)].offset_ns if self.clocks else 0)
            times = (round(column[op]) + shift for column in (self.ready, self.start, self.end))
            parts.append(_RECORD.pack(op, self.plan.op_lane[op], *times))
        return b"".join(parts)

    def recorded(self) -> Iterator[int]:
        """Go through the ids of the ops that have been recorded, ascending."""
        return (op for op, end in enumerate(self.end) if not math.isnan(end))


def _rows(plan: Plan, chunk: bytes, clocks: tuple[RankClock, ...]) -> Iterator[tuple[int, int, int, int]]:
    """(op, ready, start, end) of each record, on the clock of the trace."""
    if len(chunk) % _RECORD.size:
        raise ConfigError(f"trace records are cut short: {len(chunk)} bytes are not a multiple of {_RECORD.size}")
    for op, _, ready, start, end in _RECORD.iter_unpack(chunk):
        if op >= plan.num_ops:
            raise ConfigError(f"a trace record names op {op}, but plan {plan.name!r} has {plan.num_ops} ops")
        shift = clocks[plan.rank_of(op)].offset_ns if clocks else 0
        yield op, ready - shift, start - shift, end - shift
