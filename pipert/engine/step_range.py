"""A step as an NVTX range, around those of its ops that the core makes."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Concatenate, ParamSpec, TypeVar

from pipert import _core

P = ParamSpec("P")
E = TypeVar("E")
R = TypeVar("R")


def shown_as_range(step: Callable[Concatenate[E, P], R]) -> Callable[Concatenate[E, P], R]:
    """Make ``Engine.step`` show itself as ``step N`` in the domain ``pipert``.

    It takes the ``nvtx`` package to do so, and a wish for it (``PIPERT_NVTX=1``, or a tool that is attached); else the
    step runs as it is.
    """

    @functools.wraps(step)
    def shown(engine: E, /, *args: P.args, **options: P.kwargs) -> R:
        with _range(engine):
            return step(engine, *args, **options)

    return shown


def _range(engine: Any) -> AbstractContextManager[object]:
    nvtx = _package() if _core.nvtx_wanted() else None
    if nvtx is None:
        return nullcontext()
    found: AbstractContextManager[object] = nvtx.annotate(f"step {engine.num_steps}", domain="pipert")
    return found


@functools.cache
def _package() -> Any:
    try:
        return importlib.import_module("nvtx")
    except ImportError:
        return None
