"""A measured figure, the peer's beside it, and the bar that it is held to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rich.table import Table


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured figure.

    Attributes:
        name: what was measured, stable over versions.
        unit: the unit of ``ours`` and ``peer``.
        ours: pipert's median.
        peer: the median of what stands beside it, None where nothing does.
        bar: what is asked for: of ``ours / peer`` where ``relative``, else of ``ours``.
        relative: whether the bar is on the ratio.
        at_least: whether the bar is a lower bound; an upper bound otherwise.
        setting: sizes and counts, and who the peer is.
    """

    name: str
    unit: str
    ours: float
    peer: float | None = None
    bar: float | None = None
    relative: bool = False
    at_least: bool = False
    setting: str = ""

    @property
    def ratio(self) -> float | None:
        """``ours / peer``; None without a peer."""
        return self.ours / self.peer if self.peer else None

    @property
    def met(self) -> bool | None:
        """Whether the bar is met; None without a bar."""
        judged = self.ratio if self.relative else self.ours
        if self.bar is None or judged is None:
            return None
        return judged >= self.bar if self.at_least else judged <= self.bar


def as_json(figures: Iterable[Figure]) -> list[dict[str, Any]]:
    """Return the figures as JSON objects."""
    names = ("name", "unit", "ours", "peer", "ratio", "bar", "relative", "at_least", "met", "setting")
    return [{name: getattr(figure, name) for name in names} for figure in figures]


def as_table(figures: Iterable[Figure]) -> Table:
    """Return the figures as a table for the terminal; the settings are in the JSON."""
    table = Table(box=None, pad_edge=False)
    table.add_column("figure", no_wrap=True)
    for heading in ("pipert", "peer", "ratio", "bar"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for figure in figures:
        ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
        table.add_row(
            figure.name,
            _number(figure.ours, figure.unit),
            "" if figure.peer is None else _number(figure.peer, figure.unit),
            ratio,
            _bar(figure),
            {True: "[green]met[/]", False: "[red]missed[/]", None: ""}[figure.met],
        )
    return table


def _number(value: float, unit: str) -> str:
    digits = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{digits} {unit}".strip()


def _bar(figure: Figure) -> str:
    if figure.bar is None:
        return ""
    sign = "≥" if figure.at_least else "≤"
    return f"{sign} {figure.bar:g}×" if figure.relative else f"{sign} {_number(figure.bar, figure.unit)}"
