"""`pipert bench` for the areas that need a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gpucheck.place import ROOT, Place
from gpucheck.rows import Row

NAME = "bench.json"
"""What all areas have measured, by area."""
AREAS = ("launch", "copy", "p2p", "vocab")
PEERS = (
    "beside_torch", "beside_liger", "beside_liger_tuned", "beside_cut_cross_entropy",
    "beside_cut_cross_entropy_filtered", "beside_megatron_core", "beside_quack", "beside_torch_linear_cross_entropy",
)  # fmt: skip
PARTS = {"vocab": ("v_128k", *PEERS)}
"""Of the areas that would take too long as a whole."""
MAY_LACK = ("ipc_two_processes_mps", *PEERS[1:])
"""Parts that a machine may not allow, or whose package it does not have; then the other figures stand without them."""
WHEELS = ROOT / "profiles" / "peers"
"""Packages for a machine that reaches no index: see the README there."""

_ASK = "from pipert.cli.bench import AREAS; print(*AREAS)"


def bench(place: Place) -> list[Row]:
    """Measure each area; a row each, and one for each part that could not be measured."""
    asked = place.python("-c", _ASK)
    there = asked.text.split()
    rows = []
    for index, area in enumerate(AREAS):
        if area not in there:
            reason = f"there is: {' '.join(there)}" if asked.status == 0 else asked.why
            rows.append(Row(f"bench {area}", False, f"no such area; {reason}"))
            continue
        rows += _measure(place, area, share=1 / (len(AREAS) - index))
    return rows


def _measure(place: Place, area: str, share: float) -> list[Row]:
    file = place.work / f"bench-{area}.json"
    file.unlink(missing_ok=True)
    parts = [f"--part={part}" for part in PARTS.get(area, ())]
    done = place.python(
        "-m", "pipert", "bench", area, *parts, "-o", file, share=share, env={"PIPERT_PEERS": str(WHEELS)}
    )
    if not file.exists():
        return [Row(f"bench {area}", False, done.why, done.seconds)]
    result = json.loads(file.read_text())
    (place.out / NAME).write_text(json.dumps({**measured(place.out), area: result}, indent=1) + "\n")
    rows = rows_of(area, result, done.seconds)
    if done.status != 0 and all(row.passed for row in rows):
        rows.append(Row(f"  {area}", False, done.why))
    return rows


def measured(out: Path) -> dict[str, dict[str, Any]]:
    """Return what lies in a folder for results, by area."""
    file = out / NAME
    return json.loads(file.read_text()) if file.exists() else {}


def rows_of(area: str, result: dict[str, Any], seconds: float) -> list[Row]:
    """Return the rows of what an area has measured. A bar that is missed is told, and is no failure."""
    figures = result["figures"]
    judged = [figure for figure in figures if figure["met"] is not None]
    missed = [figure["name"] for figure in judged if not figure["met"]]
    detail = f"{len(figures)} figures, {len(judged) - len(missed)} of {len(judged)} bars met"
    if missed:
        detail += f"; missed: {', '.join(missed)}"
    rows = [Row(f"bench {area}", bool(figures), detail, seconds)]
    for part, reason in result.get("unavailable", {}).items():
        rows.append(Row(f"  {area}: {part.replace('_', ' ')}", part in MAY_LACK, f"not measured: {reason}"))
    for part, error in result.get("failed", {}).items():
        rows.append(Row(f"  {area}: {part.replace('_', ' ')}", False, error))
    return rows
