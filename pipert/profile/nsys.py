"""The program nsys: whether it is there and runs, and its export."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from pipert.errors import ConfigError

_VERSION_TIMEOUT_S = 60


def find() -> str | None:
    """Return where nsys is; None if it is not on PATH.

    Raises:
        ConfigError: it is there, and does not run.
    """
    nsys = shutil.which("nsys")
    if nsys is not None:
        _call([nsys, "--version"], _VERSION_TIMEOUT_S)
    return nsys


def export(nsys: str, report: Path) -> Path:
    """Export a report as SQLite, and return that file.

    Raises:
        ConfigError: nsys cannot do so; the message says what it said.
    """
    target = report.with_suffix(".sqlite")
    _call([nsys, "export", "--type=sqlite", "--force-overwrite=true", f"--output={target}", str(report)], None)
    if not target.exists():
        raise ConfigError(f"{nsys} export made no {target.name}")
    return target


def _call(command: list[str], timeout_s: float | None) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout_s)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"{' '.join(command[:2])} does not run: {error}") from error
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise ConfigError(f"{' '.join(command[:2])} failed with exit code {done.returncode}: {' '.join(said[-3:])}")
