"""A daemon of CUDA's multi-process service that is the user's own: processes then use the device at the same time.

Nothing about the device is set; the daemon and what it serves find each other in a folder of their own, and it ends
with the measurement.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from pipert.bench.figure import Unavailable

IN_USE = "PIPERT_BENCH_MPS"
"""Set in the environment of processes that are served."""

_CONTROL = "nvidia-cuda-mps-control"
_TIMEOUT_S = 20


@contextmanager
def daemon() -> Iterator[dict[str, str]]:
    """Run a daemon; yield what the environment of the processes that it is to serve must have.

    Raises:
        Unavailable: it is not installed, does not start, or has served nobody in the end.
    """
    program = shutil.which(_CONTROL)
    if program is None:
        raise Unavailable(f"{_CONTROL} is not on PATH: two processes were measured time-sliced only")
    with tempfile.TemporaryDirectory(prefix="pipert-mps-") as folder:
        environment = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        _run([program, "-d"], environment)
        try:
            yield {**environment, IN_USE: "1"}
            if not _ask(program, "get_server_list", environment):
                raise Unavailable(f"{_CONTROL} runs, but no process has used it")
        finally:
            _ask(program, "quit", environment)


def _ask(program: str, command: str, environment: dict[str, str]) -> str:
    return _run([program], environment, command)


def _run(command: list[str], environment: dict[str, str], text: str = "") -> str:
    with tempfile.TemporaryFile("w+") as said:  # no pipe: what becomes a daemon may keep it open
        try:
            result = subprocess.run(
                command,
                input=text + "\n",
                env={**os.environ, **environment},
                stdout=said,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=_TIMEOUT_S,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unavailable(f"{command[0]} does not run: {error}") from None
        said.seek(0)
        answer = said.read().strip()
    if result.returncode != 0:
        raise Unavailable(f"{' '.join(command)} failed: {answer or f'exit status {result.returncode}'}")
    return answer
