"""Pictures of what was measured, in one file."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from gpucheck.benching import measured

NAME = "figures.png"
_SIZED = re.compile(r"(.*), (\d+) (B|KiB|MiB|GiB)")
_BESIDE = re.compile(r"(.*) beside (.*?), (.*)")
_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_TICKS = {1 << 10: "1 KiB", 1 << 15: "32 KiB", 1 << 20: "1 MiB", 1 << 25: "32 MiB", 1 << 30: "1 GiB"}
_PANEL_INCHES = (6.4, 4.2)


def draw(out: Path, report: Mapping[str, Any]) -> str | None:
    """Draw what a check has measured into ``out``; return the file's name, None if there is nothing to draw."""
    found = panels(out, report)
    if not found:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(2, len(found))
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(_PANEL_INCHES[0] * columns, _PANEL_INCHES[1] * rows + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title(report))
    for number, (name, fill) in enumerate(found.items()):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.set_title(name, fontsize=10)
        fill(axes)
    figure.savefig(out / NAME, dpi=110)
    return NAME


def title(report: Mapping[str, Any]) -> str:
    """Return what stands over the pictures: the GPU and the commit."""
    gpu = (report.get("machine") or {}).get("gpu") or {}
    return f"{gpu.get('name', 'no GPU')}, pipert {report.get('commit') or 'of an unknown commit'}"


def by_size(figures: list[dict[str, Any]]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Return the figures whose names end in a size, per unit and name: (bytes, value) each, and those of the peer."""
    series: defaultdict[str, defaultdict[str, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for figure in figures:
        sized = _SIZED.fullmatch(figure["name"])
        if sized is None:
            continue
        num_bytes = int(sized[2]) * _UNITS[sized[3]]
        series[figure["unit"]][sized[1]].append((num_bytes, figure["ours"]))
        if figure["peer"] is not None:
            series[figure["unit"]][f"{sized[1]}, peer"].append((num_bytes, figure["peer"]))
    return {unit: dict(of_unit) for unit, of_unit in series.items()}


def by_side(figures: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Return the figures that name a peer and a case: per quantity and case the value of each side."""
    found: defaultdict[str, defaultdict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for figure in figures:
        beside = _BESIDE.fullmatch(figure["name"])
        if beside is None:
            continue
        unit = f", {figure['unit']}" if figure["unit"] else ""
        sides = found[f"{beside[1]}{unit}"][beside[3]]
        sides.setdefault("pipert", figure["ours"])
        sides[beside[2]] = figure["peer"]
    return {what: dict(cases) for what, cases in found.items()}


def panels(out: Path, report: Mapping[str, Any]) -> dict[str, Callable[[Any], None]]:
    """Return what there is to draw: by title, what draws it onto axes."""
    found: dict[str, Callable[[Any], None]] = {}
    large = report.get("training", {}).get("large", {}).get("summary")
    if large is not None:
        found["GPT of 1 B parameters, one process: loss"] = partial(_losses, losses=large["losses"])
    for area, result in measured(out).items():
        figures = result["figures"]
        for unit, series in by_size(figures).items():
            found[f"{area}: {unit} by size"] = partial(_lines, series=series, unit=unit)
        for what, sides in by_side(figures).items():
            found[f"{area}: {what}"] = partial(_sides, sides=sides)
        single = [
            figure for figure in figures if not (_SIZED.fullmatch(figure["name"]) or _BESIDE.fullmatch(figure["name"]))
        ]
        for unit in dict.fromkeys(figure["unit"] for figure in single):
            of_unit = [figure for figure in single if figure["unit"] == unit]
            found[f"{area}: {unit}"] = partial(_bars, figures=of_unit, unit=unit)
    return found


def _losses(axes: Any, losses: list[float]) -> None:
    axes.plot(range(len(losses)), losses, marker="o")
    axes.set_xticks(range(len(losses)))
    axes.set_xlabel("step")
    axes.set_ylabel("nats a byte")


def _lines(axes: Any, series: dict[str, list[tuple[int, float]]], unit: str) -> None:
    colours: dict[str, str] = {}  # a peer has the colour of what it stands beside
    for name, points in series.items():
        points = sorted(points)
        colour = colours.setdefault(name.removesuffix(", peer"), f"C{len(colours)}")
        axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            label=name,
            marker=".",
            color=colour,
            linestyle="--" if ", peer" in name else "-",
        )
    sizes = {size for points in series.values() for size, _ in points}
    axes.set_xscale("log", base=2)
    ticks = [size for size in _TICKS if min(sizes) <= size <= max(sizes)]
    axes.set_xticks(ticks, [_TICKS[size] for size in ticks])
    axes.set_ylabel(unit)
    if unit.endswith("/s"):
        axes.set_ylim(bottom=0)
    else:
        axes.set_yscale("log")
    axes.legend(fontsize=6)


def _sides(axes: Any, sides: dict[str, dict[str, float]]) -> None:
    """Draw a group of bars for each case, a colour for each side."""
    names = list(dict.fromkeys(name for of_case in sides.values() for name in of_case))
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        places = [
            (case + (number + 0.5) * width - 0.4, of_case[name])
            for case, of_case in enumerate(sides.values())
            if name in of_case
        ]
        axes.barh(*zip(*places, strict=True), width, label=name)
    values = [value for of_case in sides.values() for value in of_case.values() if value > 0]
    if values and max(values) > 20 * min(values):
        axes.set_xscale("log")
    axes.set_yticks(range(len(sides)), list(sides), fontsize=7)
    axes.invert_yaxis()
    axes.legend(fontsize=6, loc="upper left", bbox_to_anchor=(1, 1))


def _bars(axes: Any, figures: list[dict[str, Any]], unit: str) -> None:
    names = [figure["name"] for figure in figures]
    positions = range(len(names))
    axes.barh([place - 0.2 for place in positions], [figure["ours"] for figure in figures], 0.4, label="pipert")
    peers = [(place + 0.2, figure["peer"]) for place, figure in zip(positions, figures, strict=True) if figure["peer"]]
    if peers:
        places, values = zip(*peers, strict=True)
        axes.barh(places, values, 0.4, label="peer")
        axes.legend(fontsize=7)
    axes.set_yticks(list(positions), names, fontsize=6)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
