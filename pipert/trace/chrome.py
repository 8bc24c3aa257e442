"""Trace files: the Chrome trace event format, which Perfetto and chrome://tracing open.

Every rank of every trace is a process, every lane a thread, every op a slice; arrows lead from a SEND to its RECV. The
plans travel along in ``otherData``, so that `read_chrome` can rebuild the traces. A unit of cost is shown as 1 ms.
"""

from __future__ import annotations

import json
import math
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from pipert.errors import ConfigError, PipertError
from pipert.ops import LaneKind
from pipert.plan import Plan
from pipert.trace.trace import RankClock, Trace

_VERSION = 1
_US_PER_UNIT = {"ns": 1e-3, "cost": 1e3}
_LINES_AT_ONCE = 4096


def write_chrome(path: str | os.PathLike[str], traces: Sequence[tuple[str, Trace]]) -> None:
    """Write labelled traces to one file. The events are written as they are made, so size costs no memory.

    Args:
        path: the JSON file.
        traces: e.g. ``[("measured", result.trace), ("predicted", report.trace)]``; each gets its own processes.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        with open(path, "w", encoding="utf-8") as file:
            for text in _pieces(traces):
                file.write(text)
    except OSError as error:
        raise ConfigError(f"cannot write trace file {os.fspath(path)!r}: {error.strerror}") from error


def read_chrome(path: str | os.PathLike[str]) -> list[tuple[str, Trace]]:
    """Read the labelled traces of a file that `write_chrome` wrote.

    Raises:
        ConfigError: the file cannot be read or is no such file.
        PlanError: a plan in it is not valid.
    """
    name = os.fspath(path)
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except OSError as error:
        raise ConfigError(f"cannot read trace file {name!r}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"trace file {name!r} is not JSON: {error}") from error
    try:
        return parse_chrome(content)
    except ConfigError as error:
        raise ConfigError(f"trace file {name!r}: {error}") from error


def is_trace_file(path: str | os.PathLike[str]) -> bool:
    """Whether this is a JSON file with traces in it, and no plan; what may be wrong with it, `read_chrome` says."""
    if not os.fspath(path).endswith(".json"):
        return False
    try:
        with open(path, encoding="utf-8") as file:
            return '"traceEvents":' in file.read()
    except (OSError, UnicodeDecodeError):
        return False


def read_step(path: str | os.PathLike[str]) -> Trace:
    """Read the measured step of a trace file; the first step if none was measured.

    Raises:
        ConfigError: as `read_chrome` says, or there is no step.
        PlanError: a plan in it is not valid.
    """
    traces = [trace for _, trace in read_chrome(path)]
    if not traces:
        raise ConfigError(f"trace file {os.fspath(path)!r} holds no step")
    return next((trace for trace in traces if trace.unit == "ns"), traces[0])


def parse_chrome(content: Any) -> list[tuple[str, Trace]]:
    """Rebuild the labelled traces in the parsed JSON of a trace file.

    Raises:
        ConfigError: `write_chrome` did not write it.
        PlanError: a plan in it is not valid.
    """
    header = _get(_get(content, "otherData"), "pipert")
    if header is None:
        raise ConfigError("not written by pipert: it has no otherData.pipert")
    if _get(header, "version") != _VERSION:
        raise ConfigError(f"has version {_get(header, 'version')!r}, this is pipert's version {_VERSION}")
    try:
        plans = [Plan.from_dict(plan) for plan in header["plans"]]
        traces = [_empty_trace(plans[entry["plan"]], entry) for entry in header["traces"]]
        for event in content["traceEvents"]:
            if event["ph"] == "X":
                _read_event(traces[event["args"]["trace"]], event)
        return [(str(entry["label"]), trace) for entry, trace in zip(header["traces"], traces, strict=True)]
    except PipertError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"damaged: {type(error).__name__}: {error}") from error


def _get(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, Mapping) else None


def _empty_trace(plan: Plan, entry: Mapping[str, Any]) -> Trace:
    unit = entry["unit"]
    if unit not in _US_PER_UNIT:
        raise ConfigError(f"unknown unit {unit!r}")
    start, end, ready = (array("d", [math.nan]) * plan.num_ops for _ in range(3))
    clocks = tuple(RankClock(int(offset), int(uncertainty)) for offset, uncertainty in entry["clocks"])
    measured = ready if unit == "ns" else None
    return Trace(plan, start, end, measured, unit, int(entry["step"]), int(entry["origin_ns"]), clocks)


def _read_event(trace: Trace, event: Mapping[str, Any]) -> None:
    args, scale = event["args"], 1 / _US_PER_UNIT[trace.unit]
    op = args["op"]
    if op < 0:
        raise IndexError(op)
    start, duration, waited = (value * scale for value in (event["ts"], event["dur"], args.get("waited_us", 0.0)))
    if trace.ready is None:
        trace.start[op], trace.end[op] = start, start + duration
    else:  # whole nanoseconds
        trace.start[op], trace.end[op] = round(start), round(start + duration)
        trace.ready[op] = round(start - waited)


def _pieces(traces: Sequence[tuple[str, Trace]]) -> Iterator[str]:
    yield '{"displayTimeUnit":"ms","traceEvents":[\n'
    most_ranks = max((trace.plan.num_ranks for _, trace in traces), default=0)
    lines = (
        line for group, (label, trace) in enumerate(traces) for line in _events(group, label, trace, group * most_ranks)
    )
    separator = ""
    while block := list(islice(lines, _LINES_AT_ONCE)):
        yield separator + ",\n".join(block)
        separator = ",\n"
    plans: list[Plan] = []
    entries = []
    for label, trace in traces:
        if trace.plan not in plans:
            plans.append(trace.plan)
        entries.append(
            {
                "label": label,
                "plan": plans.index(trace.plan),
                "unit": trace.unit,
                "step": trace.step,
                "origin_ns": trace.origin_ns,
                "clocks": [(clock.offset_ns, clock.uncertainty_ns) for clock in trace.clocks],
            }
        )
    header = {"version": _VERSION, "traces": entries, "plans": [plan.to_dict() for plan in plans]}
    yield f'\n],"otherData":{{"pipert":{json.dumps(header, separators=(",", ":"))}}}}}\n'


def _events(group: int, label: str, trace: Trace, first_process: int) -> Iterator[str]:
    """All events of one trace. A process is a rank, the first of them ``first_process``."""
    plan = trace.plan
    yield from _process_names(first_process, label, trace)
    scale = _US_PER_UNIT[trace.unit]
    digits = 3 if trace.unit == "ns" else 6
    lane_names = [_lane_name(plan, lane) for lane in range(len(plan.lanes))]
    threads = _Threads(plan)
    named = set()
    for op in trace.recorded():
        item, lane = plan.ops[op], plan.op_lane[op]
        process = first_process + plan.lanes[lane].rank
        thread = threads.place(lane, trace.start[op], trace.end[op])
        if thread not in named:
            named.add(thread)
            order = thread if item.kind.lane is LaneKind.COMPUTE else thread + threads.count
            yield _metadata("thread_name", process, thread, {"name": lane_names[lane]})
            yield _metadata("thread_sort_index", process, thread, {"sort_index": order})
        start, end = trace.start[op] * scale, trace.end[op] * scale
        waited = "" if trace.ready is None else f',"waited_us":{(trace.start[op] - trace.ready[op]) * scale:.3f}'
        where = f'"pid":{process},"tid":{thread}'
        yield (
            f'{{"ph":"X","name":"{plan.op_text[op]}","cat":"{item.kind.text}",{where},"ts":{start:.{digits}f},'
            f'"dur":{end - start:.{digits}f},"args":{{"stage":{item.stage},"microbatch":{item.microbatch},'
            f'"lane":"{lane_names[lane]}"{waited},"op":{op},"trace":{group}}}}}'
        )
        if item.kind.lane not in (LaneKind.SEND, LaneKind.RECV):
            continue
        phase, transfer = ('"s"', op) if item.kind.lane is LaneKind.SEND else ('"f","bp":"e"', op - 1)
        yield (
            f'{{"ph":{phase},"name":"transfer","cat":"transfer","id":{group << 32 | transfer},{where},'
            f'"ts":{start:.{digits}f}}}'
        )


class _Threads:
    """Threads of the lanes.

    Slices of one thread must not overlap, but transfers of pure latency may: they then take the lane's further threads,
    of which no more than ``recv_depth`` are needed.
    """

    def __init__(self, plan: Plan) -> None:
        self._stride = plan.recv_depth
        self.count = len(plan.lanes) * self._stride
        self._busy_until = [[-math.inf] * self._stride for _ in plan.lanes]

    def place(self, lane: int, start: float, end: float) -> int:
        busy = self._busy_until[lane]
        index = next((index for index, until in enumerate(busy) if until <= start), 0)
        busy[index] = end
        return lane * self._stride + index


def _process_names(first_process: int, label: str, trace: Trace) -> Iterator[str]:
    for rank in range(trace.plan.num_ranks):
        process = first_process + rank
        name: dict[str, object] = {"name": f"{label}: rank {rank}"}
        if trace.clocks:
            clock = trace.clocks[rank]
            name |= {"clock_offset_ns": clock.offset_ns, "clock_uncertainty_ns": clock.uncertainty_ns}
            labels = f"clock offset {clock.offset_ns} ns ± {clock.uncertainty_ns} ns"
            yield _metadata("process_labels", process, 0, {"labels": labels})
        yield _metadata("process_name", process, 0, name)
        yield _metadata("process_sort_index", process, 0, {"sort_index": process})


def _metadata(name: str, process: int, thread: int, args: Mapping[str, object]) -> str:
    event = {"ph": "M", "name": name, "pid": process, "tid": thread, "args": args}
    return json.dumps(event, separators=(",", ":"))


def _lane_name(plan: Plan, lane: int) -> str:
    place = plan.lanes[lane]
    if place.kind in (LaneKind.COMPUTE, LaneKind.COLLECTIVE):
        return str(place.kind.value)
    return f"send to {place.peer}" if place.kind is LaneKind.SEND else f"receive from {place.peer}"
