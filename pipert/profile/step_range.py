"""The NVTX range around each step that is captured: written by the engine, looked for in the profiler's report."""

from __future__ import annotations

import re

_STEP_RANGE = re.compile(r"pipert step ([0-9]{1,18})")


def step_range(step: int) -> str:
    """Return the text of a step's range."""
    return f"pipert step {step}"


def step_of(text: str) -> int | None:
    """Return the step that a range is around; None if it is another one."""
    found = _STEP_RANGE.fullmatch(text)
    return None if found is None else int(found[1])
