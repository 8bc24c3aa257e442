"""Running the command that is profiled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

from pipert.errors import ConfigError

_PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def resolved(command: Sequence[str]) -> list[str]:
    """Return a command in which ``pipert`` is this very installation, whatever PATH says."""
    return [sys.executable, "-m", "pipert", *command[1:]] if command[0] == "pipert" else list(command)


def run(command: Sequence[str], environment: Mapping[str, str], *, output_to_stderr: bool) -> int:
    """Run a command to its end, and return its exit code, 128 + n if signal n ended it.

    The terminal sends Ctrl-C to the command too, so it is left to that; SIGTERM, SIGHUP and SIGUSR1 are passed on.

    Args:
        command: program and arguments.
        environment: what is added to this process's environment.
        output_to_stderr: whether its standard output goes to standard error, as this process's holds something else.

    Raises:
        ConfigError: it cannot be started.
    """
    try:
        process = subprocess.Popen(
            list(command), env={**os.environ, **environment}, stdout=sys.stderr.fileno() if output_to_stderr else None
        )
    except OSError as error:
        raise ConfigError(f"cannot start {command[0]!r}: {error.strerror}") from error
    with _passing_signals_on(process):
        code = process.wait()
    return code if code >= 0 else 128 - code


@contextmanager
def _passing_signals_on(process: subprocess.Popen[bytes]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def pass_on(signum: int, _frame: FrameType | None) -> None:
        process.send_signal(signum)

    before = {signum: signal.signal(signum, pass_on) for signum in _PASSED_ON}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
