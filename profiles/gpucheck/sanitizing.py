"""compute-sanitizer over two steps of a small engine."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from gpucheck.machine import find_program
from gpucheck.place import Done, Place
from gpucheck.rows import Row

TARGET = "two_steps.py"
_SUMMARIES = {
    "memcheck": re.compile(r"ERROR SUMMARY: (\d+) error"),
    "racecheck": re.compile(r"RACECHECK SUMMARY: (\d+) hazard"),
}
# torch's own allocator would hand out pieces of one large allocation, within which nothing can be out of bounds.
_ENVIRONMENT = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTORCH_CUDA_ALLOC_CONF": ""}


def sanitize(place: Place) -> list[Row]:
    """Run each tool; a row with its count of errors."""
    program = find_program("compute-sanitizer")
    if program is None:
        return [Row("compute-sanitizer", False, "there is none")]
    rows = []
    for tool, share in (("memcheck", 0.6), ("racecheck", 1.0)):
        # What the driver refuses is checked at each call; torch probes for things by calls that fail.
        command = [program, f"--tool={tool}", *(["--report-api-errors=no"] if tool == "memcheck" else [])]
        rows.append(_row(place, tool, command, share))
    return rows


def _row(place: Place, tool: str, command: list[str], share: float) -> Row:
    done = place.run([*command, sys.executable, Path(__file__).with_name(TARGET)], env=_ENVIRONMENT, share=share)
    passed, detail, count = judge(tool, done)
    place.results.setdefault("sanitizer", {})[tool] = count
    return Row(tool, passed, detail, done.seconds)


def judge(tool: str, done: Done) -> tuple[bool, str, int | None]:
    """Return whether a tool found nothing, what to say, and its count of errors (None: it did not come to its end)."""
    found = _SUMMARIES[tool].search(done.text)
    if done.timed_out or found is None:
        return False, f"no summary: {done.why}", None
    count = int(found[1])
    ran = "two steps done" in done.text
    return ran and count == 0 and done.status == 0, f"{count} errors" if ran else done.why, count
