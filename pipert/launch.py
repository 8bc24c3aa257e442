"""Starts one process per rank on this machine, with the environment that torchrun gives, and leaves none behind.

A rank is the leader of a session of its own: signals reach it only through the launcher, and whatever it starts can be
ended with it. It dies with the launcher (PR_SET_PDEATHSIG), even if that is killed.
"""

from __future__ import annotations

import ctypes
import os
import selectors
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress

from pipert.errors import ConfigError

GRACE_S = 5.0
"""How long the other ranks may take to end after the first one has failed."""

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_FORWARDED = (*_ENDING, signal.SIGUSR1)
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def run(command: Sequence[str], num_ranks: int) -> int:
    """Run ``command`` as ``num_ranks`` ranks and wait until all of them have ended.

    SIGINT, SIGTERM, SIGHUP and SIGUSR1 are passed on to the ranks (if this is the main thread). When a rank fails, the
    others have :data:`GRACE_S` seconds to end; then they are killed.

    Returns:
        0 if every rank returned 0; else 128 + n if signal n was passed on to end them; else the exit status of the
        first that failed, 128 + n if signal n killed it.

    Raises:
        ConfigError: ``num_ranks`` is less than 1, or the command cannot be started.
    """
    if num_ranks < 1:
        raise ConfigError(f"the number of ranks must be at least 1, not {num_ranks}")
    ranks: list[subprocess.Popen[bytes]] = []
    with closing(_reserved_port()) as port, _forwarding(ranks) as passed_on:
        try:
            with _signals_held_back():
                for rank in range(num_ranks):
                    ranks.append(_start(command, rank, num_ranks, port.getsockname()[1]))
            status = _wait(ranks)
            return 128 + passed_on[0] if status != 0 and passed_on else status
        finally:
            for process in ranks:
                _end(process)


def _start(command: Sequence[str], rank: int, num_ranks: int, port: int) -> subprocess.Popen[bytes]:
    environment = {
        "OMP_NUM_THREADS": "1",
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(num_ranks),
        "LOCAL_WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    try:
        return subprocess.Popen(
            list(command), env=environment, start_new_session=True, preexec_fn=_die_with(os.getpid())
        )
    except OSError as error:
        raise ConfigError(f"cannot start {command[0]!r}: {error.strerror}") from error


def _die_with(launcher: int) -> Callable[[], None]:
    def in_child() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != launcher:  # it died before the line above
            os._exit(1)

    return in_child


def _wait(ranks: list[subprocess.Popen[bytes]]) -> int:
    """Wait for all ranks, or for the first failure and then at most :data:`GRACE_S`; return the exit status."""
    status = 0
    deadline: float | None = None
    with selectors.DefaultSelector() as selector:
        for process in ranks:
            selector.register(os.pidfd_open(process.pid), selectors.EVENT_READ, process)
        try:
            while selector.get_map() and (deadline is None or time.monotonic() < deadline):
                for key, _ in selector.select(None if deadline is None else deadline - time.monotonic()):
                    selector.unregister(key.fileobj)
                    os.close(key.fd)
                    code = _end(key.data)
                    if code != 0 and status == 0:
                        status = code
                        deadline = time.monotonic() + GRACE_S
        finally:
            for key in list(selector.get_map().values()):
                os.close(key.fd)
    return status


def _end(process: subprocess.Popen[bytes]) -> int:
    """Kill what is left of a rank and what it started; return its exit status.

    Its process group is killed before it is waited for: until then its number cannot belong to anyone else.
    """
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Keep signals until all ranks are there to receive them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _forwarding(ranks: list[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Pass signals on to the ranks that are still running; yields the list of those that were to end them."""
    passed_on: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield passed_on
        return

    def forward(signum: int, _frame: object) -> None:
        if signum in _ENDING:
            passed_on.append(signum)
        for process in ranks:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signum)

    before = {signum: signal.signal(signum, forward) for signum in _FORWARDED}
    try:
        yield passed_on
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _reserved_port() -> socket.socket:
    """Return a socket whose port nobody else is given; rank 0 can still listen on it, as this one does not."""
    reserved = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("", 0))
    return reserved
