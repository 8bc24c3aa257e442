"""Timelines of traces: a self-contained interactive page, and a still picture."""

from __future__ import annotations

import base64
import json
import os
import sys
from array import array
from collections.abc import Iterator, Sequence
from html import escape
from importlib import resources
from typing import Any

from pipert.errors import ConfigError
from pipert.ops import LaneKind, OpKind
from pipert.plan import Plan
from pipert.trace import Trace, measure

_COLORS = {
    OpKind.FORWARD: (63, 114, 184),
    OpKind.BACKWARD: (63, 145, 84),
    OpKind.INPUT_GRAD: (38, 158, 148),
    OpKind.WEIGHT_GRAD: (226, 165, 52),
    OpKind.RECOMPUTE: (146, 104, 182),
    OpKind.OVERLAP_F_B: (194, 85, 122),
    OpKind.SEND_F: (112, 124, 145),
    OpKind.SEND_B: (112, 124, 145),
    OpKind.RECV_F: (160, 170, 188),
    OpKind.RECV_B: (160, 170, 188),
    OpKind.UNSHARD: (120, 132, 84),
    OpKind.RESHARD: (168, 176, 140),
    OpKind.REDUCE_GRAD: (148, 112, 84),
}
_LIGHTEST = 0.42  # how far the last chunk of a rank is mixed with white
_KINDS = tuple(OpKind)
_KIND_INDEX = {kind: index for index, kind in enumerate(_KINDS)}


def write_timeline(path: str | os.PathLike[str], traces: Sequence[tuple[str, Trace]]) -> None:
    """Write a page that shows traces over one another on a common time axis; it needs no network.

    Args:
        path: the HTML file.
        traces: labels and traces, e.g. ``[("planned", report.trace), ("measured", result.trace)]``. If some are
            measured, a unit of cost is shown as a millisecond.

    Raises:
        ConfigError: there is no trace, one of them lacks ops, or the file cannot be written.
    """
    if not traces:
        raise ConfigError("a timeline needs at least one trace")
    measured = any(trace.unit == "ns" for _, trace in traces)
    page = {
        "kinds": [kind.text for kind in _KINDS],
        "colors": [_COLORS[kind] for kind in _KINDS],
        "unit": "ms" if measured else "",
        "traces": [_page_trace(label, trace) for label, trace in traces],
    }
    template = resources.files("pipert").joinpath("view.html").read_text(encoding="utf-8")
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


def _page_trace(label: str, trace: Trace) -> dict[str, Any]:
    """One trace as the page reads it: times in the page's unit, columns as base64 of little-endian numbers."""
    plan, report = trace.plan, measure(trace)
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
        "shades": _shades(plan),
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


def _shades(plan: Plan) -> list[float]:
    """Per stage, how far its colors are mixed with white: the chunks of a rank get lighter one by one."""
    chunks = [plan.chunks(plan.holders(stage)[0]) for stage in range(plan.num_stages)]
    return [_LIGHTEST * ours.index(stage) / max(1, len(ours) - 1) for stage, ours in enumerate(chunks)]


def _page_scale(trace: Trace) -> float:
    return 1e-6 if trace.unit == "ns" else 1.0


def _column(typecode: str, values: Any) -> str:
    column = array(typecode, values)
    if sys.byteorder == "big":
        column.byteswap()
    return base64.b64encode(column.tobytes()).decode("ascii")


_SVG_LEFT = 64  # where the time axis begins
_SVG_STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#1c2330}.head{font-weight:600;font-size:12px}.soft{fill:#667085}"
    ".lane{fill:#eef0f4}@media(prefers-color-scheme:dark){text{fill:#e6e9ef}.soft{fill:#98a2b3}.lane{fill:#20252e}}"
    ".on{font-size:10px;text-anchor:middle;fill:#fff}.on.light{fill:#10151d}"
)


def timeline_svg(traces: Sequence[tuple[str, Trace]], *, width: int = 960) -> str:
    """Draw the compute ops of traces, one above the other on a common time axis, as SVG text.

    Later chunks of a rank are lighter, ops carry their microbatch. Readable on light and on dark pages.

    Raises:
        ConfigError: one of the traces lacks ops.
    """
    longest = max(max(trace.end) * _page_scale(trace) for _, trace in traces)
    parts: list[str] = []
    y = 0
    for label, trace in traces:
        pixels = (width - _SVG_LEFT - 8) / longest * _page_scale(trace)
        head = escape(f"{label} · bubble {measure(trace).bubble_rate:.1%}")
        parts.append(f'<text class="head" x="{_SVG_LEFT}" y="{y + 20}">{head}</text>')
        y += 30
        for rank in range(trace.plan.num_ranks):
            parts.append(f'<text class="soft" x="8" y="{y + 14}">rank {rank}</text>')
            parts.append(f'<rect class="lane" x="{_SVG_LEFT}" y="{y}" width="{width - _SVG_LEFT - 8}" height="20"/>')
            parts += _svg_ops(trace, rank, y, pixels)
            y += 24
    used = {item.kind for _, trace in traces for item in trace.plan.ops if item.kind.lane is LaneKind.COMPUTE}
    for index, kind in enumerate(kind for kind in _KINDS if kind in used):
        x = _SVG_LEFT + index * 120
        parts.append(f'<rect x="{x}" y="{y + 12}" width="12" height="12" rx="2" fill="rgb{_COLORS[kind]}"/>')
        parts.append(f'<text class="soft" x="{x + 18}" y="{y + 22}">{kind.name.lower().replace("_", " ")}</text>')
    box = f'width="{width}" height="{y + 34}" viewBox="0 0 {width} {y + 34}"'
    body = "\n".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box}>\n<style>{_SVG_STYLE}</style>\n{body}\n</svg>\n'


def _svg_ops(trace: Trace, rank: int, y: int, pixels: float) -> Iterator[str]:
    """Draw the compute ops of one rank as bars with the number of their microbatch; ``pixels`` per unit of time."""
    shades = _shades(trace.plan)
    for op in trace.plan.compute_ops(rank):
        item, x = trace.plan.ops[op], _SVG_LEFT + trace.start[op] * pixels
        size, shade = (trace.end[op] - trace.start[op]) * pixels, shades[item.stage]
        color = tuple(round(part + (255 - part) * shade) for part in _COLORS[item.kind])
        where = f'x="{x:.2f}" y="{y}" width="{max(0.5, size - 0.8):.2f}" height="20" rx="2"'
        yield f'<rect class="op" {where} fill="rgb{color}"/>'
        if size > 7 * len(str(item.microbatch)) + 2:
            style = "on light" if 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2] > 150 else "on"
            yield f'<text class="{style}" x="{x + size / 2:.1f}" y="{y + 14}">{item.microbatch}</text>'
