"""Brings the loss data to the rank where Megatron's scripts look for it."""

from __future__ import annotations

import json
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipert.errors import ConfigError
from pipert.megatron.group_device import group_device


def share(data: list[Any], group: dist.ProcessGroup) -> list[Any]:
    """Bring the loss data of the first rank to the last rank. Collective over those two.

    Args:
        data: what the loss function returned, per microbatch; nested lists, tuples and dictionaries of tensors,
            numbers, text and None. Empty but on the first rank of ``group``.
        group: the pipeline's ranks.

    Returns:
        The data, on both ranks; [] on the others.

    Raises:
        ConfigError: there is something else in it.
    """
    first, last = 0, group.size() - 1
    if group.rank() == first:
        _send(data, group, last)
        return data
    return _receive(group, first) if group.rank() == last else data


def _send(data: list[Any], group: dist.ProcessGroup, peer: int) -> None:
    tensors: list[Tensor] = []
    fault = None
    try:
        form = _take_apart(data, tensors)
    except ConfigError as error:
        form, fault = {"fault": str(error)}, error
    device = group_device(group)
    header = torch.frombuffer(bytearray(json.dumps(form).encode()), dtype=torch.uint8).to(device)
    payload = [each.detach().to(device).contiguous().reshape(-1).view(torch.uint8) for each in tensors]
    parts = [header, torch.cat(payload) if payload else header[:0]]
    dist.send(torch.tensor([part.numel() for part in parts], device=device), group=group, group_dst=peer)
    for part in parts:
        if part.numel():
            dist.send(part, group=group, group_dst=peer)
    if fault is not None:
        raise fault


def _receive(group: dist.ProcessGroup, peer: int) -> list[Any]:
    device = group_device(group)
    sizes = torch.zeros(2, dtype=torch.int64, device=device)
    dist.recv(sizes, group=group, group_src=peer)
    header, payload = (torch.empty(size, dtype=torch.uint8, device=device) for size in sizes.tolist())
    for part in (header, payload):
        if part.numel():
            dist.recv(part, group=group, group_src=peer)
    form = json.loads(bytes(header.tolist()))
    if "fault" in form:
        raise ConfigError(form["fault"])
    data: list[Any] = _Reader(payload).put_together(form)
    return data


def _take_apart(value: Any, tensors: list[Tensor]) -> dict[str, Any]:
    """Describe ``value`` for JSON, and put its tensors aside."""
    if isinstance(value, Tensor):
        tensors.append(value)
        dtype = str(value.dtype).removeprefix("torch.")
        return {"tensor": list(value.shape), "dtype": dtype, "device": value.device.type}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _take_apart(part, tensors) for key, part in value.items()}}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_take_apart(part, tensors) for part in value]}
    raise ConfigError(
        f"the loss function's data hold a {type(value).__name__}; a V-shaped schedule has the last stage on rank 0 and "
        "brings the data to the last rank: use tensors, numbers and text, in lists, tuples and dicts with names as keys"
    )


class _Reader:
    """Builds a value from its description and the bytes of its tensors."""

    def __init__(self, payload: Tensor) -> None:
        self._payload = payload
        self._at = 0

    def put_together(self, form: dict[str, Any]) -> Any:
        if "tensor" in form:
            return self._tensor(form["tensor"], getattr(torch, form["dtype"]), form["device"])
        if "dict" in form:
            return {key: self.put_together(part) for key, part in form["dict"].items()}
        if "list" in form:
            return [self.put_together(part) for part in form["list"]]
        if "tuple" in form:
            return tuple([self.put_together(part) for part in form["tuple"]])
        return form["value"]

    def _tensor(self, shape: list[int], dtype: torch.dtype, device: str) -> Tensor:
        result = torch.empty(shape, dtype=dtype, device=self._payload.device)
        flat = result.view(-1).view(torch.uint8)
        flat.copy_(self._payload[self._at : self._at + flat.numel()])
        self._at += flat.numel()
        return result.to(device)
