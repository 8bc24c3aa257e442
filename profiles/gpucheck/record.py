"""Files the results of a check under profiles/results, named after the GPU."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from gpucheck import machine, plots
from gpucheck.benching import measured
from gpucheck.place import ROOT

RESULTS = ROOT / "profiles" / "results"


class RecordError(Exception):
    """The results cannot be filed; the message says why."""


def record(folder: Path, results: Path = RESULTS) -> list[Path]:
    """File the results in ``folder``: ``gpu_H200.json`` (its name for an H200) and what goes with it.

    Returns:
        The files that were written.

    Raises:
        RecordError: there is no result, it was not made on a GPU, or nobody can tell of which commit.
    """
    report = _load(folder / "gpu.json")
    gpu = (report.get("machine") or {}).get("gpu")
    if gpu is None:
        raise RecordError(f"{folder / 'gpu.json'} was not made on a GPU")
    label = machine.label(gpu["name"])
    report["commit"] = commit_of(report)
    written = [_write(results / f"gpu_{label}.json", report)]
    for area, result in measured(folder).items():
        written.append(_write(results / f"{area}_{label}.json", _with_commit(result, report["commit"])))
    if (folder / plots.NAME).exists():
        written.append(results / f"gpu_{label}.png")
        shutil.copyfile(folder / plots.NAME, written[-1])
    return written


def commit_of(report: dict[str, Any]) -> str:
    """Return the commit that a check ran on: as it says; where it had no repository, this tree's, if it is the same.

    Raises:
        RecordError: this tree is another one.
    """
    if report.get("commit"):
        return str(report["commit"])
    here = machine.commit()
    if here is None or machine.sources_digest() != report.get("sources"):
        raise RecordError("the results are of other sources than these: check out the commit that they were made from")
    return here


def _with_commit(result: dict[str, Any], commit: str) -> dict[str, Any]:
    found = result.get("machine") or {}
    return {**result, "machine": {**found, "commit": found.get("commit") or commit}}


def _load(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise RecordError(f"{file} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise RecordError(f"{file} is not the result of a check")
    return found


def _write(file: Path, value: dict[str, Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value, indent=1) + "\n")
    return file
