"""Keeping automatic casts out of what chooses its own precision."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import torch


class _OnDevice(Protocol):
    @property
    def device(self) -> torch.device: ...


_Self = TypeVar("_Self", bound=_OnDevice)
_Args = ParamSpec("_Args")
_Result = TypeVar("_Result")


def no_autocast(method: Callable[Concatenate[_Self, _Args], _Result]) -> Callable[Concatenate[_Self, _Args], _Result]:
    """Run a method of something on a device without autocast, which would make fp32 products bf16."""

    @functools.wraps(method)
    def wrapped(self: _Self, /, *args: _Args.args, **kwargs: _Args.kwargs) -> _Result:
        with torch.autocast(self.device.type, enabled=False):
            return method(self, *args, **kwargs)

    return wrapped
