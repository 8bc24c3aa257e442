"""What a stage hands on, as a flat tuple of tensors, and back again.

Megatron's stages hand on a tensor; some models hand on tuples or dictionaries of tensors. Tensors travel by the engine;
how they were arranged does not change from one microbatch to the next, so it travels once, ahead of the first.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipert.errors import ConfigError
from pipert.rendezvous import Group
from pipert.stages import Tensors


@dataclass(frozen=True, slots=True)
class Structure:
    """How tensors were arranged.

    Attributes:
        kind: ``"tensor"``, ``"tuple"`` (also of a list) or ``"dict"``.
        keys: of a dictionary, in its order.
    """

    kind: str
    keys: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"a dict of {', '.join(self.keys)}" if self.kind == "dict" else f"a {self.kind}"

    def input_tensor(self, tensors: Tensors) -> list[Any]:
        """Arrange ``tensors`` for ``set_input_tensor``, which takes a list."""
        return [dict(zip(self.keys, tensors, strict=True))] if self.kind == "dict" else list(tensors)


def flatten(value: Any) -> tuple[Structure, Tensors]:
    """Take a stage's output apart.

    Raises:
        ConfigError: it is neither a tensor nor a tuple, list or dictionary of tensors.
    """
    if isinstance(value, Tensor):
        return Structure("tensor"), (value,)
    if isinstance(value, (tuple, list)) and all(isinstance(part, Tensor) for part in value):
        return Structure("tuple"), tuple(value)
    if isinstance(value, dict) and all(isinstance(part, Tensor) for part in value.values()):
        return Structure("dict", tuple(map(str, value))), tuple(value.values())
    parts = f" of {', '.join(type(part).__name__ for part in value)}" if isinstance(value, (tuple, list)) else ""
    raise ConfigError(
        f"the model's output is a {type(value).__name__}{parts}; a stage hands on a tensor, or a tuple, list or dict "
        "of tensors"
    )


class Announced:
    """The structures between the stages of one pipeline, each told once by the rank before to the rank behind."""

    def __init__(self, group: Group) -> None:
        """``group`` moves host memory."""
        self._group = group
        self._rank = dist.get_rank(group)
        self._known: dict[int, Structure] = {}
        self._unsent: list[tuple[Any, Tensor]] = []

    def tell(self, stage: int, structure: Structure, peer: int) -> None:
        """Tell the rank of the next stage what ``stage`` hands on.

        Raises:
            ConfigError: it handed on something else before.
        """
        known = self._known.setdefault(stage, structure)
        if known is structure:
            if peer != self._rank:
                payload = json.dumps([structure.kind, *structure.keys]).encode()
                message = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
                for part in (torch.tensor([message.numel()]), message):
                    self._unsent.append((dist.isend(part, group=self._group, group_dst=peer, tag=stage), part))
        elif known != structure:
            raise ConfigError(f"the model's output was {known} and is {structure} now; it must stay the same")

    def of(self, stage: int, peer: int) -> Structure:
        """Return what ``stage``, on rank ``peer``, hands on; it has done so already."""
        if stage not in self._known:
            length = torch.zeros(1, dtype=torch.int64)
            dist.recv(length, group=self._group, group_src=peer, tag=stage)
            message = torch.empty(int(length), dtype=torch.uint8)
            dist.recv(message, group=self._group, group_src=peer, tag=stage)
            kind, *keys = json.loads(bytes(message.tolist()))
            self._known[stage] = Structure(kind, tuple(keys))
        return self._known[stage]

    def flush(self) -> None:
        """Let go of what has been sent; at the end of a step all of it has arrived."""
        while self._unsent:
            work, _ = self._unsent.pop()
            work.wait()
