"""Where a check runs: its folders, its log, and the time that it has left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parents[2]
GRACE_S = 10.0
"""How long a command may take to end once it has been told to."""
MOST_FILE_BYTES = 15_000_000


@dataclass(frozen=True)
class Done:
    """A command that has ended.

    Attributes:
        status: its exit status; 128 + n if signal n ended it.
        text: what it printed, errors among it.
        seconds: how long it took.
        timed_out: whether it was ended because its time was up.
    """

    status: int
    text: str
    seconds: float
    timed_out: bool

    @property
    def why(self) -> str:
        """What to say of it where it failed."""
        if self.timed_out:
            return f"did not end within {self.seconds:.0f} s; last: {last_line(self.text)}"
        return f"exit status {self.status}: {last_line(self.text)}"


@dataclass
class Place:
    """What the steps of a check share.

    Attributes:
        out: the folder for results: few files, flat.
        work: the folder for everything else.
        deadline: when the step that runs must have ended, on the monotonic clock.
        log: what commands print goes there.
        results: what steps found out beside their rows; JSON values.
    """

    out: Path
    work: Path
    deadline: float
    log: TextIO
    results: dict[str, Any] = field(default_factory=dict)

    def run(
        self,
        command: Sequence[str | Path],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        share: float = 1.0,
    ) -> Done:
        """Run a command (in the work folder) with pipert from this tree, for at most a share of the time that is left.

        When its time is up it gets SIGINT, so that it can say how far it came, then SIGKILL, with all it has started.
        """
        limit_s = max(1.0, (self.deadline - time.monotonic() - GRACE_S) * share)
        words = [str(word) for word in command]
        self.log.write(f"\n$ {' '.join(words)}\n")
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120", **(env or {})}
        begin = time.monotonic()
        process = subprocess.Popen(
            words,
            cwd=cwd or self.work,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        timed_out = False
        try:
            text, _ = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            timed_out = True
            text = _end(process)
        self.log.write(text)
        self.log.flush()
        status = process.returncode if process.returncode >= 0 else 128 - process.returncode
        return Done(status, text, time.monotonic() - begin, timed_out)

    def python(self, *arguments: str | Path, **options: Any) -> Done:
        """Run the Python that runs this, see :meth:`run`."""
        return self.run([sys.executable, *arguments], **options)

    def keep(self, file: Path, name: str) -> str | None:
        """Copy a file to the results; return why that is not possible, if it is not."""
        if not file.is_file():
            return f"{file.name} was not written"
        if file.stat().st_size > MOST_FILE_BYTES:
            return f"{file.name} has {file.stat().st_size:,} bytes, too many to keep"
        shutil.copyfile(file, self.out / name)
        return None


def last_line(text: str, width: int = 160) -> str:
    """Return the last line that says something, cut to a table's width."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:width] if lines else "it printed nothing"


def _end(process: subprocess.Popen[str]) -> str:
    for signum in (signal.SIGINT, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signum)
        try:
            return process.communicate(timeout=GRACE_S if signum == signal.SIGINT else None)[0]
        except subprocess.TimeoutExpired:
            continue
    raise AssertionError("a killed process has ended")
