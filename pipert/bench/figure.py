"""A measured figure, the peer's beside it, and the bar that it is held to."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from pipert.errors import PipertError


class Unavailable(PipertError):
    """A part of a benchmark that cannot be measured here; the message says what is missing."""


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
        quartiles: the first and the third one of the rounds that ``ours`` is the median of; None where it is not.
    """

    name: str
    unit: str
    ours: float
    peer: float | None = None
    bar: float | None = None
    relative: bool = False
    at_least: bool = False
    setting: str = ""
    quartiles: tuple[float, float] | None = None

    @classmethod
    def of(
        cls,
        name: str,
        unit: str,
        ours: Sequence[float],
        peer: Sequence[float] | None = None,
        *,
        bar: float | None = None,
        relative: bool = False,
        at_least: bool = False,
        setting: str = "",
    ) -> Figure:
        """Make the figure of some rounds: its medians, and the quartiles of ours."""
        theirs = statistics.median(peer) if peer else None
        return cls(name, unit, statistics.median(ours), theirs, bar, relative, at_least, setting, quartiles(ours))

    @property
    def more_is_better(self) -> bool:
        """Whether a larger value is the better one: rates are, times are not."""
        return self.at_least or self.unit.endswith("/s")

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


def from_fields(fields: Mapping[str, Any]) -> Figure:
    """Return the figure whose ``dataclasses.asdict`` went through JSON."""
    spread = fields["quartiles"]
    return Figure(**{**fields, "quartiles": None if spread is None else tuple(spread)})


def quartiles(samples: Sequence[float]) -> tuple[float, float]:
    """Return the first and the third quartile."""
    if len(samples) == 1:
        return samples[0], samples[0]
    first, _, third = statistics.quantiles(samples, n=4, method="inclusive")
    return first, third


def as_json(figures: Iterable[Figure]) -> list[dict[str, Any]]:
    """Return the figures as JSON objects."""
    names = ("name", "unit", "ours", "peer", "ratio", "bar", "relative", "at_least", "met", "setting", "quartiles")
    return [{name: getattr(figure, name) for name in names} for figure in figures]


def as_table(figures: Iterable[Figure], verdicts: Mapping[str, tuple[float | None, str]] | None = None) -> Table:
    """Return the figures as a table for the terminal; the settings are in the JSON.

    ``verdicts`` adds, by name, the older value and how the figure compares to it.
    """
    table = Table(box=None, pad_edge=False)
    table.add_column("figure", no_wrap=True)
    for heading in ("pipert", "peer", "ratio", "bar"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    if verdicts is not None:
        table.add_column("was", justify="right", no_wrap=True)
        table.add_column("now", no_wrap=True)
    for figure in figures:
        ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
        cells = [
            figure.name,
            _number(figure.ours, figure.unit),
            "" if figure.peer is None else _number(figure.peer, figure.unit),
            ratio,
            _bar(figure),
            {True: "[green]met[/]", False: "[red]missed[/]", None: ""}[figure.met],
        ]
        if verdicts is not None:
            was, verdict = verdicts[figure.name]
            cells += ["" if was is None else _number(was, figure.unit), verdict]
        table.add_row(*cells)
    return table


def _number(value: float, unit: str) -> str:
    digits = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{digits} {unit}".strip()


def _bar(figure: Figure) -> str:
    if figure.bar is None:
        return ""
    sign = "≥" if figure.at_least else "≤"
    return f"{sign} {figure.bar:g}×" if figure.relative else f"{sign} {_number(figure.bar, figure.unit)}"
