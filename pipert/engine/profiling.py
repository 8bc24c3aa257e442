"""What an engine does for ``pipert profile``: it keeps the records of some steps, and writes them to a file.

Where CUDA is in use, a profiler that waits for ``cudaProfilerStart`` captures exactly those steps, each in an NVTX
range named by `step_range`.
"""

from __future__ import annotations

import itertools
import os
import sys
import weakref
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from pipert.errors import PipertError
from pipert.profile.request import Request
from pipert.profile.step_range import step_range

if TYPE_CHECKING:
    from pipert.engine.engine import Engine
    from pipert.engine.result import StepResult
    from pipert.rendezvous import Group

_PATIENCE = timedelta(seconds=5)
_ordinals = itertools.count()


class Profiling:
    """Keeps what one engine records of the steps that are asked for.

    Args:
        request: which steps; None if none.
        group: the ranks, if each is a process of its own.
    """

    def __init__(self, request: Request | None, group: Group | None) -> None:
        self._request = request
        self._steps = range(0) if request is None else request.steps
        self._ordinal = -1 if request is None else next(_ordinals)
        self._group = group
        self._kept: list[StepResult] = []
        self._capturing = False
        self._in_step = False

    def start(self, step: int) -> None:
        """Begin a step, maybe anew after inputs that were refused."""
        self._leave_step()
        if step not in self._steps or not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            return
        if not self._capturing:
            self._capturing = True
            torch.cuda.synchronize()
            torch.cuda.cudart().cudaProfilerStart()  # type: ignore[no-untyped-call]
        self._in_step = True
        torch.cuda.nvtx.range_push(step_range(step))  # type: ignore[no-untyped-call]

    def keep(self, result: StepResult) -> StepResult:
        """End a step, and return its result; after the last one that is asked for, write the file."""
        if result.step in self._steps:
            self._leave_step()
            _ = result.records  # of a device they can be read until its next step
            self._kept.append(result)
            if result.step == self._steps[-1]:
                self.close()
        return result

    def close(self) -> None:
        """Write what was kept, if that has not been done. A failure to write is told, and ends nothing."""
        failed = self._in_step
        self._leave_step()
        if self._capturing:
            self._capturing = False
            self._stop_capture(together=not failed)
        request, self._request = self._request, None
        if request is not None:
            self._write(request)
        self._kept.clear()

    def _leave_step(self) -> None:
        if self._in_step:
            self._in_step = False
            torch.cuda.nvtx.range_pop()  # type: ignore[no-untyped-call]

    def _stop_capture(self, *, together: bool) -> None:
        """End the capture. A profiler around all ranks ends it at the first call: all get there before one calls."""
        if together:
            torch.cuda.synchronize()
            if self._group is not None:
                with suppress(RuntimeError, ValueError):  # a rank is gone, or the group is: the rest is captured
                    dist.all_reduce(torch.zeros(1), group=self._group, async_op=True).wait(_PATIENCE)
        torch.cuda.cudart().cudaProfilerStop()  # type: ignore[no-untyped-call]

    def _write(self, request: Request) -> None:
        from pipert.trace import write_chrome

        target = request.file_of(os.getpid(), self._ordinal)
        partial = target.with_name(target.name + ".part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            write_chrome(partial, [(f"step {result.step}", result.trace) for result in self._kept])
            partial.replace(target)
        except (OSError, PipertError) as error:
            print(f"pipert: no profile was written: {error}", file=sys.stderr)


def watch(engine: Engine, group: Group | None) -> Profiling:
    """Return what keeps the steps of ``engine`` that the environment asks for, until it is closed or gone.

    Raises:
        ConfigError: the environment asks for no steps that there could be.
    """
    profiling = Profiling(Request.from_environment(), group)
    weakref.finalize(engine, profiling.close)
    return profiling
