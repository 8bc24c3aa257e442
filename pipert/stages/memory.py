"""How much memory an autograd graph holds on to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from pipert.stages.graph import AccumulateGrad, is_hooked, storage_id


def held_bytes(roots: Iterable[Any], tensors: Iterable[Tensor], without: Iterable[Tensor]) -> int:
    """Return the bytes of all memory that the graph below ``roots`` and ``tensors`` keep alive, each counted once.

    Tensors under saved-tensor hooks count only where they are tensors all the same; what a checkpointed region holds
    for its own recomputation is not seen.

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
    seen: set[Any] = set()
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        stack += [child for child, _ in node.next_functions if child is not None]
        if type(node) is AccumulateGrad:
            yield node.variable
        for name in dir(node):
            if name.startswith("_raw_saved_"):
                raw = getattr(node, name)
                for index, saved in enumerate(raw if isinstance(raw, tuple) else (raw,)):
                    tensor = _tensor_of(node, name, saved, index if isinstance(raw, tuple) else None)
                    if tensor is not None and tensor.layout is torch.strided:
                        yield tensor


def _tensor_of(node: Any, name: str, saved: Any, index: int | None) -> Tensor | None:
    if is_hooked(saved):
        data = getattr(saved, "data", None)
        return data if isinstance(data, Tensor) else None
    value = getattr(node, "saved_tensors" if name == "_raw_saved_tensors" else name.replace("_raw", "", 1))
    tensor = value if index is None else value[index]
    return tensor if isinstance(tensor, Tensor) else None
