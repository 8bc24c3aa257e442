"""An NVTX tool for tests, which logs what it is told (``native/nvtx_injection.cpp``), and how to read its log."""

import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
from collections import Counter, defaultdict
from dataclasses import dataclass

import pytest

from pipert import _core
from pipert.ops import LaneKind

ROOT = pathlib.Path(__file__).resolve().parents[1]
_spec = importlib.util.spec_from_file_location("find_nvtx", ROOT / "csrc" / "trace" / "find_nvtx.py")
finder = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(finder)


def compile_cpp(output, *arguments):
    """Compile with the system's C++ compiler; skip where there is none."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    run([compiler, "-std=c++20", "-Wall", "-Wextra", *arguments, "-o", output])
    return output


def run(command):
    """Run a command that must succeed."""
    result = subprocess.run([os.fspath(part) for part in command], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def build_tool(folder):
    """Build the tool; return its path. Skip where the core knows no NVTX, or there are no headers to build with."""
    if not _core.built_with_nvtx():
        pytest.skip("the core was built without NVTX")
    include = finder.find_nvtx()
    if include is None:
        pytest.skip("no NVTX headers: pip install nvidia-nvtx")
    source = ROOT / "tests" / "native" / "nvtx_injection.cpp"
    return compile_cpp(folder / "libnvtx_injection.so", "-shared", "-fPIC", f"-I{include}", source)


@dataclass(frozen=True)
class Event:
    """A range (``end`` is where in the log it was popped) or a mark (``end`` is ``start``)."""

    name: str
    thread: int
    payload: object
    start: int
    end: int
    depth: int


def read(path):
    """Return the events of a log in the order of their starts, after checking that its ranges are balanced."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert {line["domain"] for line in lines if "domain" in line} == {"pipert"}
    strings = [line["name"] for line in lines if line["event"] == "string"]
    assert max(Counter(strings).values()) == 1  # each text is registered once
    open_ranges, events = defaultdict(list), []
    for place, line in enumerate(lines):
        stack = open_ranges[line["thread"]]
        if line["event"] == "push":
            stack.append((place, line))
        elif line["event"] == "pop":
            start, pushed = stack.pop()
            events.append(Event(pushed["name"], line["thread"], pushed["payload"], start, place, len(stack)))
        elif line["event"] == "mark":
            events.append(Event(line["name"], line["thread"], line["payload"], place, place, len(stack)))
    assert not any(open_ranges.values())  # each push has its pop
    return sorted(events, key=lambda event: event.start)


def check(events, plan, ranks, num_steps, nbytes):
    """Assert that these are the events of a plan's steps on some ranks: all ops, in order, with their payloads.

    ``nbytes(text, step)`` is what the SEND with this text sends.
    """
    rows = [row for row in range(plan.num_ops) if plan.lanes[plan.op_lane[row]].rank in ranks]
    assert Counter(event.name for event in events) == Counter([plan.op_text[row] for row in rows] * num_steps)
    assert all(event.depth == 0 for event in events)
    _check_lanes(events, plan, rows, num_steps, nbytes)
    _check_dependencies(events, plan, rows, num_steps)


def _check_lanes(events, plan, rows, num_steps, nbytes):
    """Each lane's ops come in the plan's order (those that compute, of all ranks, on one thread)."""
    lanes = defaultdict(list)
    for row in rows:
        kind = plan.lanes[plan.op_lane[row]].kind
        lanes["compute" if kind in (LaneKind.COMPUTE, LaneKind.COLLECTIVE) else plan.op_lane[row]].append(row)
    for lane, lane_rows in lanes.items():
        texts = [plan.op_text[row] for row in lane_rows]
        found = [event for event in events if event.name in set(texts)]
        assert [event.name for event in found] == texts * num_steps
        if lane == "compute":
            assert len({event.thread for event in found}) == 1
        for place, event in enumerate(found):
            step, row = place // len(lane_rows), lane_rows[place % len(lane_rows)]
            assert event.payload == _payload(plan, row, nbytes, step), event
            assert (event.start == event.end) == (lane != "compute" and plan.lanes[lane].kind is LaneKind.RECV), event


def _payload(plan, row, nbytes, step):
    op, kind = plan.ops[row], plan.lanes[plan.op_lane[row]].kind
    sent = {LaneKind.SEND: row, LaneKind.RECV: row - 1}.get(kind)  # a RECV stands right behind its SEND
    size = 0 if sent is None else nbytes(plan.op_text[sent], step)
    if not (finder.find_nvtx() / "nvtx3" / "nvToolsExtPayload.h").is_file():
        return size  # headers of CUDA 12
    return {"stage": op.stage, "microbatch": op.microbatch, "bytes": size}


def _check_dependencies(events, plan, rows, num_steps):
    """No op starts before the end of one that it waits for, and no message is taken before it is being sent."""
    named = defaultdict(list)
    for event in events:
        named[event.name].append(event)
    here = set(rows)
    for row in rows:
        for dep in plan.deps[plan.dep_offsets[row] : plan.dep_offsets[row + 1]]:
            for step in range(num_steps):
                assert named[plan.op_text[dep]][step].end < named[plan.op_text[row]][step].start
        if plan.lanes[plan.op_lane[row]].kind is LaneKind.RECV and row - 1 in here:
            for step in range(num_steps):
                assert named[plan.op_text[row - 1]][step].start < named[plan.op_text[row]][step].start
