"""What a stage needs to run a forward again: the random numbers of the first time, and checkpointed submodules."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, get_device_states, set_device_states

from pipert.errors import ConfigError


class RngState:
    """The state of the default generators: the CPU's, and those of the devices of some tensors."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._cpu = torch.default_generator.get_state()
        self._devices = _device_states(tensors)

    @contextmanager
    def replayed(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        """Draw the same random numbers again, then continue where the generators stood before."""
        before = RngState(tensors)
        self._restore()
        try:
            yield
        finally:
            before._restore()

    @property
    def num_bytes(self) -> int:
        """The memory that it takes."""
        return self._cpu.nbytes + sum(state.nbytes for state in self._devices[1])

    def _restore(self) -> None:
        torch.default_generator.set_state(self._cpu)
        if self._devices[0]:
            set_device_states(*self._devices)


def _device_states(tensors: Sequence[Tensor]) -> tuple[Sequence[int], Sequence[Tensor]]:
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return (), ()
    devices, states = get_device_states(*tensors)
    return devices, states


def nothing_saved() -> AbstractContextManager[object]:
    """Let autograd save no tensor, for a forward whose graph is thrown away.

    Not the same as no autograd: kernels stay those of training, and outputs tell whether they need a gradient.
    """
    return torch.autograd.graph.saved_tensors_hooks(lambda tensor: None, _unpack_nothing)


def _unpack_nothing(packed: None) -> Tensor:
    raise RuntimeError("the backward of a forward that saved nothing")


def checkpoint_submodules(module: nn.Module, names: Sequence[str]) -> None:
    """Let the named submodules keep only their inputs, and run again in the backward (in place).

    Parameters inside them get their gradient in I, because what a weight gradient needs is there only while the
    submodule runs again. Submodules with buffers that a forward changes (running statistics) change them twice.

    Raises:
        ConfigError: a name that ``module`` does not have.
    """
    known = dict(module.named_modules())
    for name in names:
        if not name or name not in known:
            near = difflib.get_close_matches(name, [other for other in known if other], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"the stage's module has no submodule {name!r} to recompute{hint}")
    for name in names:
        known[name].forward = _checkpointed(known[name].forward)


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run
