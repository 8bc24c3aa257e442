"""compute-sanitizer over two steps of a small engine, and over the passes of a small output layer."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from gpucheck.machine import find_program
from gpucheck.place import Done, Place
from gpucheck.rows import Row

RUNS = (
    ("memcheck", "two_steps.py", 0.4),
    ("memcheck", "vocab_passes.py", 0.6),
    ("racecheck", "two_steps.py", 1.0),
)
"""The tool, what it watches, and the share of the time that is left. Racecheck knows too little of TMA."""
_SUMMARIES = {
    "memcheck": re.compile(r"ERROR SUMMARY: (\d+) error"),
    "racecheck": re.compile(r"RACECHECK SUMMARY: (\d+) hazard"),
}
# torch's own allocator would hand out pieces of one large allocation, within which nothing can be out of bounds.
_ENVIRONMENT = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTORCH_CUDA_ALLOC_CONF": ""}


def sanitize(place: Place) -> list[Row]:
    """Run the tools; a row for each run, with its count of errors."""
    program = find_program("compute-sanitizer")
    if program is None:
        return [Row("compute-sanitizer", False, "there is none")]
    rows = []
    for tool, target, share in RUNS:
        # What the driver refuses is checked at each call; torch probes for things by calls that fail.
        command = [program, f"--tool={tool}", *(["--report-api-errors=no"] if tool == "memcheck" else [])]
        rows.append(_row(place, tool, target, command, share))
    return rows


def _row(place: Place, tool: str, target: str, command: list[str], share: float) -> Row:
    done = place.run([*command, sys.executable, Path(__file__).with_name(target)], env=_ENVIRONMENT, share=share)
    passed, detail, count = judge(tool, done)
    name = f"{tool}, {Path(target).stem.replace('_', ' ')}"
    place.results.setdefault("sanitizer", {})[name] = count
    return Row(name, passed, detail, done.seconds)


def judge(tool: str, done: Done) -> tuple[bool, str, int | None]:
    """Return whether a tool found nothing, what to say, and its count of errors (None: it did not come to its end)."""
    found = _SUMMARIES[tool].search(done.text)
    if done.timed_out or found is None:
        return False, f"no summary: {done.why}", None
    count = int(found[1])
    ran = "ran to its end" in done.text
    return ran and count == 0 and done.status == 0, f"{count} errors" if ran else done.why, count
