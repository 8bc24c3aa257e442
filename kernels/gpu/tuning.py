"""Which of several ways is the fastest here: measured once per device and shape, and kept in a file."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

_WARMUPS = 2
_ROUNDS = 5


def default_path() -> Path:
    """Return the file in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "pipert" / "vocab_tuning.json"


def bucket(size: int) -> int:
    """Round up to a power of two: sizes between two of them share a choice."""
    return 1 << max(size - 1, 0).bit_length()


class Tuner:
    """Chooses among named ways, and remembers.

    Nothing is measured where torch is asked for deterministic algorithms, since what is fastest may differ between
    runs, and the last bits with it: then it is always the first way. Nor in the interpreter, or while a graph is
    captured: then it is the first way unless one has been chosen before.

    Args:
        path: the file of choices; one that cannot be read or written is done without.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or default_path()
        self._choices: dict[str, str] | None = None

    def choose(self, key: str, names: Sequence[str], run: Callable[[str], object], device: torch.device) -> str:
        """Return one of ``names``.

        Args:
            key: what the choice depends on, the device's name included.
            names: the ways, the likeliest first.
            run: does the work in the way named; it may be called many times, and may raise for a way that the device
                cannot go.
            device: where.
        """
        if len(names) == 1 or device.type != "cuda" or torch.are_deterministic_algorithms_enabled():
            return names[0]
        choices = self._load()
        if choices.get(key) in names:
            return choices[key]
        if torch.cuda.is_current_stream_capturing():
            return names[0]
        times = {name: _measure(run, name) for name in names}
        best = min(names, key=lambda name: times[name])
        choices[key] = best
        self._save()
        return best

    def _load(self) -> dict[str, str]:
        if self._choices is None:
            self._choices = _read(self._path)
        return self._choices

    def _save(self) -> None:
        """Write the file whole, with what other processes have found meanwhile."""
        merged = _read(self._path) | (self._choices or {})
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self._path.parent, delete=False) as file:
                json.dump(merged, file, indent=1, sort_keys=True)
            os.replace(file.name, self._path)


def _read(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {key: value for key, value in found.items() if isinstance(value, str)}


def _measure(run: Callable[[str], object], name: str) -> float:
    """Return the median of a few times in ms; infinite for a way that fails."""
    try:
        for _ in range(_WARMUPS):
            run(name)
        return statistics.median(_time(run, name) for _ in range(_ROUNDS))
    except Exception:  # whatever the compiler, the driver or the allocator raises: this way is not for this device
        return float("inf")


def _time(run: Callable[[str], object], name: str) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    run(name)
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))
