"""How much memory an autograd graph holds on to."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pipert.stages.graph import AccumulateGrad, PythonNode, is_hooked, nodes_below, storage_id


def held_bytes(roots: Iterable[Any], tensors: Iterable[Tensor], without: Iterable[Tensor]) -> int:
    """Return the bytes of all memory that the graph below ``roots`` and ``tensors`` keep alive, each counted once.

    Tensors under saved-tensor hooks are not counted, nor is what a checkpointed region holds to run again.

    Args:
        roots: nodes.
        tensors: what is held besides.
        without: tensors whose memory is held anyway (the parameters and buffers of the module).
    """
    known = {storage_id(tensor) for tensor in without}
    total = 0
    for tensor in (*tensors, *_saved_tensors(roots)):
        key = storage_id(tensor)
        if key not in known:
            known.add(key)
            total += tensor.untyped_storage().nbytes()
    return total


def _saved_tensors(roots: Iterable[Any]) -> Iterator[Tensor]:
    for node in nodes_below(roots):
        if type(node) is AccumulateGrad:
            yield node.variable
        for name in _names_of_saved(node.__class__):
            tensors = _saved_under(node, name)
            yield from (tensor for tensor in tensors if isinstance(tensor, Tensor) and tensor.layout is torch.strided)


@functools.cache
def _names_of_saved(node_type: Any) -> tuple[str, ...]:
    return tuple(name.removeprefix("_raw") for name in dir(node_type) if name.startswith("_raw_saved_"))


def _saved_under(node: Any, name: str) -> Sequence[Any]:
    raw = getattr(node, "_raw" + name)
    if not isinstance(raw, tuple):
        return () if is_hooked(raw, node, name) else (getattr(node, name),)
    if any(is_hooked(saved, node, f"{name}{index}") for index, saved in enumerate(raw)):
        return ()
    values: Sequence[Any] = getattr(node, "saved_tensors" if isinstance(node, PythonNode) else name)
    return values
