"""A result beside an older one: what became faster, what slower, and what cannot be told."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from pipert.bench.figure import Figure
from pipert.errors import ConfigError

NEGLIGIBLE = 0.01  # a difference of medians that is none
WIDE = 0.05  # a difference that, if it may be there, keeps two figures from being the same


class Verdict(Enum):
    """How a figure compares to the older one."""

    FASTER = "faster"
    SAME = "same"
    SLOWER = "slower"
    AMBIGUOUS = "ambiguous"
    NEW = "new"


@dataclass(frozen=True, slots=True)
class Old:
    """An older result.

    Attributes:
        path: its file.
        machine: where it was measured.
        figures: by name: value and quartiles, None where they were not kept.
    """

    path: Path
    machine: Mapping[str, Any]
    figures: Mapping[str, tuple[float, tuple[float, float] | None]]


def load(path: Path, area: str) -> Old:
    """Read what ``pipert bench AREA -o`` wrote.

    Raises:
        ConfigError: there is no such file, it holds something else, or figures of another area.
    """
    try:
        result = json.loads(path.read_text())
        found, machine = result["area"], dict(result["machine"])
        figures = {figure["name"]: (float(figure["ours"]), _spread(figure)) for figure in result["figures"]}
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is no result of `pipert bench {area} -o FILE` ({error!r})") from None
    if found != area:
        raise ConfigError(f"{path} holds figures of the area {found!r}, not of {area!r}")
    return Old(path, machine, figures)


def _spread(figure: Mapping[str, Any]) -> tuple[float, float] | None:
    spread = figure.get("quartiles")
    return None if spread is None else (float(spread[0]), float(spread[1]))


def verdict(figure: Figure, old: Old) -> Verdict:
    """Judge one figure.

    A difference counts if the ranges between the quartiles do not meet, and the medians differ by more than
    :data:`NEGLIGIBLE`. Where the ranges meet, the figures are the same if no two of their values are further apart than
    :data:`WIDE`; otherwise nothing can be told.
    """
    if figure.name not in old.figures:
        return Verdict.NEW
    before, old_spread = old.figures[figure.name]
    now, spread = figure.ours, figure.quartiles
    if now == before:
        return Verdict.SAME
    if spread is None or old_spread is None:
        return Verdict.AMBIGUOUS
    least, most = spread[0] - old_spread[1], spread[1] - old_spread[0]
    scale = max(abs(now), abs(before))
    if least <= 0 <= most:
        return Verdict.SAME if max(-least, most) <= WIDE * scale else Verdict.AMBIGUOUS
    if abs(now - before) <= NEGLIGIBLE * scale:
        return Verdict.SAME
    return Verdict.FASTER if (now > before) == figure.more_is_better else Verdict.SLOWER


def verdicts(figures: Iterable[Figure], old: Old) -> dict[str, tuple[float | None, str]]:
    """Return, by name, the older value of each figure (None: there is none) and the verdict."""
    return {
        figure.name: (old.figures.get(figure.name, (None, None))[0], verdict(figure, old).value) for figure in figures
    }


def warnings(machine: Mapping[str, Any], old: Old) -> list[str]:
    """Return what makes the two results hard to compare: another GPU, other versions."""
    ours, theirs = machine.get("gpu") or {}, old.machine.get("gpu") or {}
    differing = [
        (what, theirs.get(key), ours.get(key))
        for what, key in (("GPU", "name"), ("driver", "driver"))
        if theirs.get(key) != ours.get(key)
    ]
    differing += [
        (what, old.machine.get(what), machine.get(what))
        for what in ("torch", "cores")
        if old.machine.get(what) != machine.get(what)
    ]
    return [
        f"{old.path}: another {what}: {theirs or 'none'} then, {ours or 'none'} now" for what, theirs, ours in differing
    ]


def missing(figures: Iterable[Figure], old: Old) -> list[str]:
    """Return the names of the older result's figures that are not there any more."""
    names = {figure.name for figure in figures}
    return [name for name in old.figures if name not in names]
