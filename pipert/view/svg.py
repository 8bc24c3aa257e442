"""The still picture of a timeline: SVG text, for pages, papers and issues.

A bar is a piece of a horizontal stroke as thick as the row, and all bars of one colour are one ``<path>``: an op costs
about ten bytes. Where there are so many ops that this is too much, a row is cut into cells with the mean colour of what
runs in them. Coordinates along the time axis are tenths of a pixel, so that they are whole numbers.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from pipert.costs import Costs
from pipert.ir import Op
from pipert.ops import LaneKind, OpKind
from pipert.trace import Report, Trace, measure
from pipert.view.palette import Color, color_of, ink_on, name_of, tone_of, toned, tones

_LEFT, _RIGHT = 62, 96  # of the bars: the ranks' names, their idle shares and peaks
_HEAD, _FOOT = 50, 30  # of a panel: title and caption, time axis
_MIN_WIDTH, _MAX_WIDTH = 960, 1800
_ROW_HEIGHTS = ((8, 26), (16, 20), (32, 15), (64, 11), (128, 6))  # (at most so many ranks, pixels)
_MAX_BARS = 120_000
_DIGIT = 6.1  # the width of a digit of a label
_STYLE = (
    "text{font:11px system-ui,-apple-system,Segoe UI,Roboto,sans-serif;fill:#1c2330;font-variant-numeric:tabular-nums}"
    ".page{fill:#fff}.head{font-weight:650;font-size:14px}.soft{fill:#667085}.end{text-anchor:end}"
    ".lane{fill:#eef0f4}.line{stroke:#cdd3de}.on{text-anchor:middle;font-size:10px}"
    "@media(prefers-color-scheme:dark){.page{fill:#14171d}text{fill:#e6e9ef}.soft{fill:#98a2b3}.lane{fill:#222834}"
    ".line{stroke:#3a4250}}"
    ".ink{fill:#10151d}.white{fill:#fff}"
)


@dataclass(frozen=True, slots=True)
class _Bar:
    """A piece of a row, from ``left`` to ``right`` in tenths of a pixel; ``half`` is 1 (upper), 2 (lower), 0 (both)."""

    half: int
    left: int
    right: int
    color: Color
    opacity: float = 1.0
    label: str = ""


def timeline_svg(traces: Sequence[tuple[str, Trace]], *, costs: Costs | None = None, width: int | None = None) -> str:
    """Draw the compute ops of steps, one step above the other on a common time axis, as SVG text.

    A rank is a row, with its idle share and its peak activation at the end. Bars carry their microbatch where there is
    room for it; the two halves of an overlapped pair are drawn over each other. Readable on light and on dark pages.

    Args:
        traces: titles and traces. If some are measured, a unit of cost is shown as a millisecond.
        costs: their activation sizes give the peaks; by default a rank holds 1 per microbatch from F to I.
        width: in pixels; without it, one that suits the number of ops.

    Raises:
        ConfigError: one of the traces lacks ops, or the costs are for another number of stages.
    """
    reports = [(title, measure(trace, costs)) for title, trace in traces]
    most = max(len(row) for _, report in reports for row in _compute_ops(report))
    width = width or max(_MIN_WIDTH, min(_MAX_WIDTH, 16 * most))
    longest = max(report.makespan * _scale(report) for _, report in reports)
    pixels = (width - _LEFT - _RIGHT) / (longest or 1.0)
    unit = " ms" if any(trace.unit == "ns" for _, trace in traces) else ""
    panels = [_Panel(title, report, pixels * _scale(report), width, unit) for title, report in reports]
    parts: list[str] = []
    y = 0.0
    for panel in panels:
        parts += panel.draw(y)
        y += panel.height
    legend, lines = _legend([report for _, report in reports], width)
    parts.append(f'<g transform="translate({_LEFT} {y + 4:g})">{"".join(legend)}</g>')
    height = math.ceil(y + 20 * lines + 6)
    name = escape(" · ".join(title for title, _ in reports))
    box = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {box} role="img"><title>{name}</title>\n<style>{_STYLE}</style>'
    return "\n".join([head, f'<rect class="page" width="{width}" height="{height}"/>', *parts, "</svg>\n"])


class _Panel:
    """One step: a title, a caption, a row per rank, a time axis."""

    def __init__(self, title: str, report: Report, pixels: float, width: int, unit: str) -> None:
        self._title, self._report, self._pixels, self._width, self._unit = title, report, pixels, width, unit
        num_ranks = report.trace.plan.num_ranks
        self._bar = next((height for limit, height in _ROW_HEIGHTS if num_ranks <= limit), 4)
        self._pitch = self._bar + self._bar // 7
        self._rows_height = num_ranks * self._pitch
        self.height = _HEAD + self._rows_height + _FOOT

    def draw(self, y: float) -> Iterator[str]:
        yield f'<g transform="translate(0 {y:g})">'
        yield from self._heading()
        yield f'<g transform="translate(0 {_HEAD})">'
        yield from self._lanes()
        yield from self._axis()
        rows = _rows(self._report, self._pixels)
        yield f'<g class="ops" transform="translate({_LEFT} 0) scale(.1 1)" fill="none">'
        yield from self._strokes(rows)
        yield "</g>"
        yield from self._labels(rows)
        yield "</g></g>"

    def _heading(self) -> Iterator[str]:
        report, plan = self._report, self._report.trace.plan
        sizes = f"{plan.num_ranks} ranks · {plan.num_stages} stages · {plan.num_microbatches} microbatches"
        copies = f" · {len(plan.paths)} paths" if len(plan.paths) > 1 else ""
        peak = max(report.peak_activation)
        span = f" (over the longest rank's span {report.bubble_rate_span:.1%})"
        caption = (
            f"makespan {_number(report.makespan * _scale(report))}{self._unit} · bubble {report.bubble_rate:.1%}"
            f"{span if report.bubble_rate_span != report.bubble_rate else ''} · peak activation {_number(peak)} "
            f"on rank {report.peak_activation.index(peak)}"
        )
        yield f'<text class="head" x="{_LEFT}" y="20">{escape(self._title)}</text>'
        yield f'<text class="soft end" x="{self._width - _RIGHT}" y="20">{sizes}{copies}</text>'
        yield f'<text class="soft" x="{_LEFT}" y="38">{caption}</text>'

    def _lanes(self) -> Iterator[str]:
        report, size = self._report, self._report.makespan * self._pixels
        every = math.ceil(12 / self._pitch)  # ranks from one name to the next
        end = self._width - _RIGHT
        yield f'<text class="soft end" x="{end + 44}" y="-6">idle</text>'
        yield f'<text class="soft end" x="{end + 88}" y="-6">peak</text>'
        for rank, (compute, peak) in enumerate(zip(report.compute_times, report.peak_activation, strict=True)):
            y = rank * self._pitch
            yield f'<rect class="lane" x="{_LEFT}" y="{y}" width="{size:.1f}" height="{self._bar}"/>'
            if rank % every:
                continue
            middle = f'y="{y + self._bar / 2 + 4:g}"'
            idle = 1 - compute / report.makespan if report.makespan else 0.0
            yield f'<text class="soft end" x="{_LEFT - 8}" {middle}>rank {rank}</text>'
            yield f'<text class="soft end" x="{end + 44}" {middle}>{idle:.0%}</text>'
            yield f'<text class="soft end" x="{end + 88}" {middle}>{_number(peak)}</text>'

    def _axis(self) -> Iterator[str]:
        scale, bottom = _scale(self._report), self._rows_height + 3
        step = _nice(80 / self._pixels * scale)
        for tick in range(int(self._report.makespan * scale / step + 1e-9) + 1):
            x = _LEFT + tick * step / scale * self._pixels
            yield f'<path class="line" d="M{x:.1f} 0V{bottom}"/>'
            unit = self._unit if tick == 0 else ""
            yield f'<text class="soft on" x="{x:.1f}" y="{bottom + 13}">{_number(tick * step)}{unit}</text>'

    def _strokes(self, rows: list[list[_Bar]]) -> Iterator[str]:
        """Draw all bars: one path for each colour and place within the row."""
        middles = (self._bar / 2, self._bar / 4, self._bar * 3 / 4)
        paths: dict[tuple[int, Color, float], list[str]] = defaultdict(list)
        for rank, row in enumerate(rows):
            at: dict[tuple[int, Color, float], int] = {}  # where each path's pen is in this row
            for bar in row:
                path = (bar.half, bar.color, bar.opacity)
                move = f"M{bar.left} {rank * self._pitch + middles[bar.half]:g}"
                if path in at:
                    move = f"m{bar.left - at[path]} 0"
                paths[path].append(f"{move}h{bar.right - bar.left}")
                at[path] = bar.right
        for (half, (red, green, blue), opacity), moves in paths.items():
            look = f'stroke="#{red:02x}{green:02x}{blue:02x}"' + (
                f' stroke-opacity="{opacity:g}"' if opacity < 1 else ""
            )
            yield f'<path {look} stroke-width="{self._bar / 2 if half else self._bar:g}" d="{"".join(moves)}"/>'

    def _labels(self, rows: list[list[_Bar]]) -> Iterator[str]:
        baselines = (self._bar / 2 + 3.5, self._bar / 4 + 3.5, self._bar * 3 / 4 + 3.5)
        for rank, row in enumerate(rows):
            for bar in row:
                needed = 20 if bar.half else 10
                if bar.label and self._bar >= needed and (bar.right - bar.left) / 10 > _DIGIT * len(bar.label) + 2:
                    x, y = _LEFT + (bar.left + bar.right) / 20, rank * self._pitch + baselines[bar.half]
                    ink = "white" if ink_on(bar.color) == "#ffffff" else "ink"
                    yield f'<text class="on {ink}" x="{x:.1f}" y="{y:g}">{bar.label}</text>'


def _compute_ops(report: Report) -> list[list[int]]:
    """Per rank, the ids of its compute ops in order."""
    plan = report.trace.plan
    rows: list[list[int]] = [[] for _ in range(plan.num_ranks)]
    for op, lane in enumerate(plan.op_lane):
        if plan.lanes[lane].kind is LaneKind.COMPUTE:
            rows[plan.lanes[lane].rank].append(op)
    return rows


def _rows(report: Report, pixels: float) -> list[list[_Bar]]:
    """Per rank, its bars; cells instead of ops where those are too many. ``pixels`` per unit of the trace's time."""
    trace, ops, paint = report.trace, report.trace.plan.ops, _Paint(report)
    origin = min(trace.start)
    rows: list[list[_Bar]] = []
    for ids in _compute_ops(report):
        row: list[_Bar] = []
        for op in ids:
            left, right = (round((time - origin) * pixels * 10) for time in (trace.start[op], trace.end[op]))
            if right > left:
                row += paint.bars(ops[op], left, right)
        rows.append(row)
    if sum(map(len, rows)) <= _MAX_BARS:
        return [[_with_gap(bar) for bar in row] for row in rows]
    size = max(bar.right for row in rows for bar in row)
    num_cells = _MAX_BARS // len(rows)
    return [_cells(row, math.ceil(size / num_cells)) for row in rows]


class _Paint:
    """Gives ops their colours."""

    def __init__(self, report: Report) -> None:
        self._tones, self._path_of = tones(report.trace.plan.paths), report.trace.plan.path_of
        self._known: dict[tuple[OpKind, int, int], Color] = {}

    def color(self, op: Op) -> Color:
        key = (op.kind, op.stage, self._path_of[op.microbatch] if op.kind.has_microbatch else 0)
        if key not in self._known:
            self._known[key] = toned(color_of(op.kind), tone_of(op, self._tones, self._path_of))
        return self._known[key]

    def bars(self, op: Op, left: int, right: int) -> list[_Bar]:
        halves = (1, 2) if op.parts else (0,)
        return [
            _Bar(half, left, right, self.color(part), label=_label(part))
            for half, part in zip(halves, op.parts or (op,), strict=True)
        ]


def _label(op: Op) -> str:
    return str(op.microbatch) if op.kind.has_microbatch else op.kind.text


def _with_gap(bar: _Bar) -> _Bar:
    """Leave some air between ops that have room for it."""
    gap = 8 if bar.right - bar.left > 50 else 4 if bar.right - bar.left > 25 else 0
    return _Bar(bar.half, bar.left, bar.right - gap, bar.color, bar.opacity, bar.label)


def _cells(row: list[_Bar], size: int) -> list[_Bar]:
    """Cut a row into cells of ``size``, each with the mean colour of its bars, as strong as they fill it."""
    sums: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0, 0.0])
    for bar in row:
        for cell in range(bar.left // size, -(-bar.right // size)):
            weight = (min(bar.right, (cell + 1) * size) - max(bar.left, cell * size)) / size / (2 if bar.half else 1)
            sums[cell] = [total + part * weight for total, part in zip(sums[cell], (*bar.color, 1), strict=True)]
    bars = []
    looks = ((cell, _look(total)) for cell, total in sorted(sums.items()))
    for _, run in itertools.groupby(enumerate(looks), key=lambda item: (item[1][0] - item[0], item[1][1])):
        cells = [(cell, look) for _, (cell, look) in run]
        (first, (color, opacity)), (last, _) = cells[0], cells[-1]
        bars.append(_Bar(0, first * size, (last + 1) * size, color, opacity))
    return bars


def _look(sums: list[float]) -> tuple[Color, float]:
    """Round a cell's colour and opacity, so that neighbours are often the same."""
    red, green, blue, weight = sums
    color = (round(red / weight / 17) * 17, round(green / weight / 17) * 17, round(blue / weight / 17) * 17)
    return color, max(1, min(8, round(weight * 8))) / 8


def _legend(reports: Sequence[Report], width: int) -> tuple[list[str], int]:
    """Give the legend's parts, and how many lines it takes."""
    colors: dict[OpKind, dict[float, Color]] = defaultdict(dict)
    for report in reports:
        plan, table = report.trace.plan, tones(report.trace.plan.paths)
        for part in {part for op in plan.ops for part in op.parts or (op,)}:
            if part.kind.lane is LaneKind.COMPUTE:
                tone = tone_of(part, table, plan.path_of)
                colors[part.kind][tone] = toned(color_of(part.kind), tone)
    parts: list[str] = []
    x, line = 0.0, 0
    for text, boxes in [*_entries(colors), *((note, []) for note in _notes(reports))]:
        size = 16 * len(boxes) + 6.1 * len(text) + 24
        if x + size > width - _LEFT and x:
            x, line = 0.0, line + 1
        for index, (red, green, blue) in enumerate(boxes):
            where = f'x="{x + 14 * index:g}" y="{20 * line}" width="13" height="12"'
            parts.append(f'<rect {where} fill="#{red:02x}{green:02x}{blue:02x}"/>')
        after = x + 14 * len(boxes) + (5 if boxes else 0)
        parts.append(f'<text class="soft" x="{after:g}" y="{20 * line + 10}">{text}</text>')
        x += size
    return parts, line + 1


def _entries(colors: dict[OpKind, dict[float, Color]]) -> Iterator[tuple[str, list[Color]]]:
    for kind in OpKind:
        if kind in colors:
            shades = [color for _, color in sorted(colors[kind].items())]
            some = sorted({0, len(shades) // 3, 2 * len(shades) // 3, len(shades) - 1})
            yield name_of(kind), [shades[index] for index in some]


def _notes(reports: Sequence[Report]) -> Iterator[str]:
    plans = [report.trace.plan for report in reports]
    if any(len(set(path)) < len(path) for plan in plans for path in plan.paths):
        yield "lighter: later chunks of a rank"
    if any(len(plan.paths) > 1 for plan in plans):
        yield "darker: the second path"
    if any(op.parts for plan in plans for op in plan.ops):
        yield "split bars: overlapped pairs"


def _scale(report: Report) -> float:
    """Return the factor from the trace's time to the picture's, which has milliseconds where it was measured."""
    return 1e-6 if report.trace.unit == "ns" else 1.0


def _nice(least: float) -> float:
    """Round up to 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(least)) if least > 0 else 1.0
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def _number(value: float) -> str:
    """Write a number short: 12.5, 1.25M."""
    for limit, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(value) >= limit:
            return f"{value / limit:.4g}{suffix}"
    return f"{value:.5g}" if abs(value) < 1e5 else f"{value:.0f}"
