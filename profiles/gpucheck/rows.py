"""The table of a check: a row for each thing that was tried."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of the table; `seconds` is 0 where nothing was timed."""

    name: str
    passed: bool
    detail: str = ""
    seconds: float = 0.0


def table(rows: Iterable[Row]) -> str:
    """Return the rows as text, and how many of them failed."""
    rows = list(rows)
    width = min(max((len(row.name) for row in rows), default=0), 60)
    lines = [
        f"{'ok  ' if row.passed else 'FAIL'}  {row.name:<{width}}  {row.seconds:6.1f} s  {row.detail}".rstrip()
        for row in rows
    ]
    failed = sum(not row.passed for row in rows)
    return "\n".join([*lines, f"{len(rows) - failed} ok, {failed} failed"])
