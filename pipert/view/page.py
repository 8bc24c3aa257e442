"""The interactive timeline: one self-contained page.

The ops travel as columns of whole numbers, each as narrow as its largest value allows, compressed and in base64: a step
of 64 ranks and 256 microbatches, a quarter of a million ops, makes a page of about two megabytes.
"""

from __future__ import annotations

import base64
import itertools
import json
import math
import os
import sys
import zlib
from array import array
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from typing import Any

from pipert.costs import Costs
from pipert.errors import ConfigError
from pipert.ops import OpKind
from pipert.trace import Trace, measure
from pipert.view.palette import color_of, name_of, tones

_KINDS = tuple(OpKind)
_KIND_INDEX = {kind: index for index, kind in enumerate(_KINDS)}
_MAX_TICKS = 2**32 - 1


def write_timeline(
    path: str | os.PathLike[str], traces: Sequence[tuple[str, Trace]], *, costs: Costs | None = None
) -> None:
    """Write a page that shows traces over one another on a common time axis; it needs no network.

    Args:
        path: the HTML file.
        traces: labels and traces, e.g. ``[("planned", report.trace), ("measured", result.trace)]``. If some are
            measured, a unit of cost is shown as a millisecond.
        costs: their activation sizes give the memory; by default a rank holds 1 per microbatch from F to I.

    Raises:
        ConfigError: there is no trace, one of them lacks ops, the costs are for another number of stages, or the file
            cannot be written.
    """
    if not traces:
        raise ConfigError("a timeline needs at least one trace")
    measured = any(trace.unit == "ns" for _, trace in traces)
    page = {
        "kinds": [
            {
                "text": kind.text,
                "name": name_of(kind),
                "color": color_of(kind),
                "lane": kind.lane.value,
                "scope": kind.scope.value,
            }
            for kind in _KINDS
        ],
        "unit": "ms" if measured else "",
        "traces": [_page_trace(label, trace, costs or Costs.per_rank()) for label, trace in traces],
    }
    template = resources.files("pipert.view").joinpath("page.html").read_text(encoding="utf-8")
    data = json.dumps(page, separators=(",", ":")).replace("</", "<\\/")
    title = " · ".join(dict.fromkeys(trace.plan.name for _, trace in traces))
    before, rest = template.split("{{title}}")
    between, after = rest.split("{{data}}")
    html = before + escape(title) + between + data + after
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(html)
    except OSError as error:
        raise ConfigError(f"cannot write {os.fspath(path)!r}: {error.strerror}") from error


def _page_trace(label: str, trace: Trace, costs: Costs) -> dict[str, Any]:
    """One trace as the page reads it: figures and times in the page's unit."""
    plan, report = trace.plan, measure(trace, costs)
    scale = 1e-6 if trace.unit == "ns" else 1.0
    figures = report.to_dict()
    for name in ("makespan", "longest_rank_span"):
        figures[name] *= scale
    for name in ("compute_times", "exposed_comm"):
        figures[name] = [value * scale for value in figures[name]]
    ticks = _Ticks(trace)
    return {
        "label": label,
        "measured": trace.unit == "ns",
        "figures": figures,
        "clocks": [[clock.offset_ns, clock.uncertainty_ns] for clock in trace.clocks],
        "tones": tones(plan.paths),
        "pathOf": plan.path_of,
        "held": [[stage.act, stage.act_w, stage.act_kept] for stage in costs.for_plan(plan)],
        "heldShard": costs.vocab.act_s if costs.vocab else 0,
        "lanes": [[lane.rank, lane.kind.value, lane.peer] for lane in plan.lanes],
        "tick": ticks.length * scale,
        **_packed(_columns(trace, ticks)),
    }


def _columns(trace: Trace, ticks: _Ticks) -> dict[str, Iterable[int]]:
    """Return one number per op and column (per overlapped pair in those named so, per dependency in ``deps``)."""
    plan, ops = trace.plan, trace.plan.ops
    pairs = [op for op in ops if op.parts]
    offsets = plan.dep_offsets
    columns: dict[str, Iterable[int]] = {
        "start": map(ticks.of, trace.start),
        "took": (ticks.of(end) - ticks.of(start) for start, end in zip(trace.start, trace.end, strict=True)),
        "deps": (
            op - dep for op in range(plan.num_ops) for dep in plan.deps[offsets[op] : offsets[op + 1]]
        ),  # how many ops back
        "lane": plan.op_lane,
        "stage": (op.stage if op.kind.has_place else plan.rank_of(row) for row, op in enumerate(ops)),
        "microbatch": (op.microbatch + 1 for op in ops),  # 0: none
        "kind": (_KIND_INDEX[op.kind] for op in ops),
        "numDeps": (after - before for before, after in itertools.pairwise(offsets)),
        "pairFirst": (_KIND_INDEX[op.parts[0].kind] for op in pairs),
        "pairSecond": (_KIND_INDEX[op.parts[1].kind] for op in pairs),
        "pairStage": (op.parts[1].stage for op in pairs),
        "pairMicrobatch": (op.parts[1].microbatch for op in pairs),
    }
    if trace.ready is not None:
        columns["waited"] = (
            max(0, ticks.of(start) - ticks.of(ready)) for start, ready in zip(trace.start, trace.ready, strict=True)
        )
    return columns


class _Ticks:
    """Times as whole numbers of a power of two, small enough for rounding not to be seen."""

    def __init__(self, trace: Trace) -> None:
        self._origin = min(trace.start)
        span = max(trace.end) - self._origin
        # Measured times are whole nanoseconds; those of a step of a few seconds stay exact.
        self.length = 2.0 ** math.ceil(math.log2(span / _MAX_TICKS)) if span > 0 else 1.0
        if trace.unit == "ns":
            self.length = max(1.0, self.length)

    def of(self, time: float) -> int:
        return round((time - self._origin) / self.length)


def _packed(columns: dict[str, Iterable[int]]) -> dict[str, Any]:
    """Return the columns' names, types and lengths, and their bytes: little-endian, the widest types first."""
    arrays = [(name, _narrow(list(values))) for name, values in columns.items()]
    arrays.sort(key=lambda item: -item[1].itemsize)  # so that each stands where its type may be read
    for _, values in arrays:
        if sys.byteorder == "big":
            values.byteswap()
    content = zlib.compress(b"".join(values.tobytes() for _, values in arrays), 6)
    return {
        "columns": [[name, values.itemsize, len(values)] for name, values in arrays],
        "data": base64.b64encode(content).decode("ascii"),
    }


def _narrow(values: list[int]) -> array[int]:
    largest = max(values, default=0)
    return array("B" if largest < 1 << 8 else "H" if largest < 1 << 16 else "I", values)
