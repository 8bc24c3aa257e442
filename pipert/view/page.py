"""The interactive timeline: one self-contained page."""

from __future__ import annotations

import base64
import json
import os
import sys
from array import array
from collections.abc import Sequence
from html import escape
from importlib import resources
from typing import Any

from pipert.costs import Costs
from pipert.errors import ConfigError
from pipert.ops import OpKind
from pipert.trace import Trace, measure
from pipert.view.palette import color_of, tones

_KINDS = tuple(OpKind)
_KIND_INDEX = {kind: index for index, kind in enumerate(_KINDS)}


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
        "kinds": [kind.text for kind in _KINDS],
        "colors": [color_of(kind) for kind in _KINDS],
        "unit": "ms" if measured else "",
        "traces": [_page_trace(label, trace, costs) for label, trace in traces],
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


def _page_trace(label: str, trace: Trace, costs: Costs | None) -> dict[str, Any]:
    """One trace as the page reads it: times in the page's unit, columns as base64 of little-endian numbers."""
    plan, report = trace.plan, measure(trace, costs)
    scale = _page_scale(trace)
    origin = min(trace.start)
    figures = report.to_dict()
    for name in ("makespan", "longest_rank_span"):
        figures[name] *= scale
    for name in ("compute_times", "exposed_comm"):
        figures[name] = [value * scale for value in figures[name]]
    ops = plan.ops
    return {
        "label": label,
        "measured": trace.unit == "ns",
        "figures": figures,
        "clocks": [[clock.offset_ns, clock.uncertainty_ns] for clock in trace.clocks],
        "tones": tones(plan),
        "pathOf": plan.path_of,
        "lanes": [[lane.rank, lane.kind.value, lane.peer] for lane in plan.lanes],
        "pairs": {op: plan.op_text[op] for op, item in enumerate(ops) if item.parts},
        "kind": _column("B", (_KIND_INDEX[op.kind] for op in ops)),
        "stage": _column("i", (op.stage for op in ops)),
        "microbatch": _column("i", (op.microbatch for op in ops)),
        "lane": _column("i", plan.op_lane),
        "start": _column("d", ((time - origin) * scale for time in trace.start)),
        "end": _column("d", ((time - origin) * scale for time in trace.end)),
        "ready": None if trace.ready is None else _column("d", ((time - origin) * scale for time in trace.ready)),
        "depOffsets": _column("i", plan.dep_offsets),
        "deps": _column("i", plan.deps),
    }


def _page_scale(trace: Trace) -> float:
    return 1e-6 if trace.unit == "ns" else 1.0


def _column(typecode: str, values: Any) -> str:
    column = array(typecode, values)
    if sys.byteorder == "big":
        column.byteswap()
    return base64.b64encode(column.tobytes()).decode("ascii")
