"""When data-parallel gradients are reduced, and parameters gathered, in the course of a step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn


def _per_chunk(function: Any, num_chunks: int) -> list[Callable[..., Any]] | None:
    if function is None or isinstance(function, list):
        return function
    return [function] * num_chunks


class GradSync:
    """Holds gradient reductions back but at the last gradients of each chunk.

    Args:
        config: with ``no_sync_func``, ``grad_sync_func`` and ``param_sync_func``, each a function or one per chunk.
        chunks: the model chunks of this rank.
    """

    def __init__(self, config: Any, chunks: Sequence[nn.Module]) -> None:
        self._chunks = chunks
        self._no_sync = config.no_sync_func
        self._grad_sync = _per_chunk(config.grad_sync_func, len(chunks))
        self._param_sync = _per_chunk(config.param_sync_func, len(chunks)) if len(chunks) > 1 else None
        self._held_back = ExitStack()

    def __enter__(self) -> GradSync:
        self._hold_back()
        for chunk in range(min(2, len(self._chunks))):
            self._gather(chunk)
        return self

    def __exit__(self, *error: object) -> None:
        self._held_back.close()

    @property
    def reduces_at_once(self) -> bool:
        """Whether a chunk's gradients are reduced all at its end, not as they come."""
        return self._grad_sync is not None

    def tell_ready(self, parameter: Tensor, chunk: nn.Module) -> None:
        """Say of a parameter whose gradient no backward makes that it is complete, where they are reduced as they come.

        Megatron's data parallelism learns it of others by hooks.
        """
        ddp_config = getattr(chunk, "ddp_config", None)
        if ddp_config is None or not ddp_config.overlap_grad_reduce or self._grad_sync is not None:
            return
        groups: Any = chunk.param_to_bucket_group
        if parameter in groups:
            self._held_back.close()
            groups[parameter].register_grad_ready(parameter, chunk.force_all_reduce)
            self._hold_back()

    def before_forward(self, chunk: int, microbatch: int) -> None:
        """Gather the next chunk's parameters while this one's first forward runs."""
        if microbatch == 0 and 1 < chunk + 1 < len(self._chunks):
            self._gather(chunk + 1)

    @contextmanager
    def last_gradients(self, chunk: int) -> Iterator[None]:
        """Surround the op after which a chunk has all of its gradients: reduce as they come, or all at its end."""
        if self._grad_sync is None:
            self._held_back.close()
            yield
        else:
            yield
            self._held_back.close()
            self._grad_sync[chunk](self._chunks[chunk].parameters())
        self._hold_back()

    def _gather(self, chunk: int) -> None:
        if self._param_sync is not None:
            self._param_sync[chunk](self._chunks[chunk].parameters())

    def _hold_back(self) -> None:
        functions = self._no_sync if isinstance(self._no_sync, list) else [self._no_sync or contextlib.nullcontext]
        for function in functions:
            context: AbstractContextManager[Any] = function()
            self._held_back.enter_context(context)
