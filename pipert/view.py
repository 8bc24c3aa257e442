"""Timelines of traces: a self-contained interactive page, and a still picture."""

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

from pipert.errors import ConfigError
from pipert.ops import OpKind
from pipert.trace import Trace, measure

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
        "stageRanks": plan.stage_ranks,
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


_COLORS = {
    OpKind.FORWARD: "#3f72b8",
    OpKind.BACKWARD: "#3f9154",
    OpKind.INPUT_GRAD: "#269e94",
    OpKind.WEIGHT_GRAD: "#e2a534",
    OpKind.RECOMPUTE: "#9268b6",
    OpKind.OVERLAP_F_B: "#c2557a",
}
_SVG_STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#1c2330}.soft{fill:#667085}.lane{fill:#eef0f4}"
    "@media(prefers-color-scheme:dark){text{fill:#e6e9ef}.soft{fill:#98a2b3}.lane{fill:#20252e}}"
    ".in{fill:#fff;font-size:10px;text-anchor:middle}"
)


def timeline_svg(traces: Sequence[tuple[str, Trace]], *, width: int = 960) -> str:
    """Draw the compute ops of traces, one above the other on a common time axis, as SVG text.

    Later chunks of a rank are lighter, ops carry their microbatch. Readable on light and on dark pages.
    """
    gutter, bar, row, title = 64, 20, 24, 30
    scales = [_page_scale(trace) for _, trace in traces]
    longest = max(max(trace.end) * scale for (_, trace), scale in zip(traces, scales, strict=True))
    pixels = (width - gutter - 8) / longest
    parts, y = [], 0
    for (label, trace), scale in zip(traces, scales, strict=True):
        plan, report = trace.plan, measure(trace)
        head = f"{label} · bubble {report.bubble_rate:.1%}"
        parts.append(f'<text x="{gutter}" y="{y + 20}" font-weight="600">{escape(head)}</text>')
        for rank in range(plan.num_ranks):
            top = y + title + rank * row
            parts.append(f'<text class="soft" x="8" y="{top + 14}">rank {rank}</text>')
            parts.append(f'<rect class="lane" x="{gutter}" y="{top}" width="{longest * pixels:.1f}" height="{bar}"/>')
            chunks = [stage for stage, owner in enumerate(plan.stage_ranks) if owner == rank]
            for op in plan.compute_ops(rank):
                item, start = plan.ops[op], gutter + trace.start[op] * scale * pixels
                size = (trace.end[op] - trace.start[op]) * scale * pixels
                opacity = 1 - 0.35 * chunks.index(item.stage) / max(1, len(chunks) - 1)
                parts.append(
                    f'<rect x="{start:.2f}" y="{top}" width="{max(0.5, size - 0.8):.2f}" height="{bar}" rx="2" '
                    f'fill="{_COLORS[item.kind]}" fill-opacity="{opacity:.2f}"/>'
                )
                if size > 7 * len(str(item.microbatch)) + 2:
                    parts.append(f'<text class="in" x="{start + size / 2:.1f}" y="{top + 14}">{item.microbatch}</text>')
        y += title + plan.num_ranks * row
    kinds = [kind for kind in _COLORS if any(item.kind is kind for _, trace in traces for item in trace.plan.ops)]
    for index, kind in enumerate(kinds):
        x = gutter + index * 120
        parts.append(f'<rect x="{x}" y="{y + 12}" width="12" height="12" rx="2" fill="{_COLORS[kind]}"/>')
        parts.append(f'<text class="soft" x="{x + 18}" y="{y + 22}">{kind.name.lower().replace("_", " ")}</text>')
    box = f'width="{width}" height="{y + 34}" viewBox="0 0 {width} {y + 34}"'
    body = "\n".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box}>\n<style>{_SVG_STYLE}</style>\n{body}\n</svg>\n'
