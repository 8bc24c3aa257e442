"""Puts the times of nsys reports in the place of those that the engines recorded."""

from __future__ import annotations

import dataclasses
import time
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipert.errors import ConfigError
from pipert.ops import LaneKind
from pipert.plan import Plan
from pipert.profile.nsys_report import Span, read_report
from pipert.profile.recorded import Recorded
from pipert.trace import Trace


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the times of the ops come from, over all steps.

    Attributes:
        device: how many have those of their work on the device.
        host: how many have those of their range, for they put nothing on the device.
        engine: how many are in no report (transfers only), and have those that the engine recorded.
    """

    device: int
    host: int
    engine: int

    def __str__(self) -> str:
        return f"{self.device} ops timed on the device, {self.host} on the host, {self.engine} transfers by the engine"


def with_device_times(recorded: Recorded, exports: Iterable[Path]) -> tuple[Recorded, Sources]:
    """Return the steps with the times of the reports, where these have all the compute ops of a step.

    Args:
        recorded: what the engines recorded.
        exports: the reports of all processes, as SQLite, made on this machine since it was started.

    Raises:
        ConfigError: a report lacks what is needed, or no step is whole.
    """
    plan = recorded.plan
    computes = {
        text: plan.lanes[lane].kind is LaneKind.COMPUTE for text, lane in zip(plan.op_text, plan.op_lane, strict=True)
    }
    found: dict[int, dict[str, Span]] = {}
    for path in exports:
        for step, spans in read_report(path, computes).items():
            found.setdefault(step, {}).update(spans)
    whole = [trace for trace in recorded.steps if _lacks(plan, computes, found.get(trace.step, {})) is None]
    if not whole:
        step = recorded.steps[0].step
        text = _lacks(plan, computes, found.get(step, {}))
        raise ConfigError(f"the nsys reports have no range of {text} in step {step}, and no other step is whole either")
    to_engine_clock = time.monotonic_ns() - time.time_ns()
    steps = tuple(_timed(trace, found[trace.step], to_engine_clock) for trace in whole)
    used = [found[trace.step].get(text) for trace in whole for text in plan.op_text]
    on_device = [span.on_device for span in used if span is not None]
    sources = Sources(sum(on_device), len(on_device) - sum(on_device), len(used) - len(on_device))
    return dataclasses.replace(recorded, steps=steps), sources


def _lacks(plan: Plan, computes: Mapping[str, bool], spans: Mapping[str, Span]) -> str | None:
    return next((text for text in plan.op_text if computes[text] and text not in spans), None)


def _timed(trace: Trace, spans: Mapping[str, Span], shift: int) -> Trace:
    start, end = array("d", trace.start), array("d", trace.end)
    assert trace.ready is not None
    ready = array("d", trace.ready)
    for op, text in enumerate(trace.plan.op_text):
        span = spans.get(text)
        if span is not None:
            start[op] = span.start + shift - trace.origin_ns
            end[op] = span.end + shift - trace.origin_ns
            ready[op] = min(ready[op], start[op])
    return dataclasses.replace(trace, start=start, end=end, ready=ready)
