"""Copies of one parameter (on replicas of a stage, or tied): they must start alike, and get one sum of gradients.

All arithmetic is that of :mod:`pipert.numerics`, and every rank that has a copy does all of it, in one order: so all
copies get the same bits, and no rank waits for another to do its sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipert.digest import digest
from pipert.errors import ConfigError
from pipert.exchange import exchange
from pipert.numerics import Copy, gradient_of, set_gradient, sum_copies
from pipert.rendezvous import Group
from pipert.replicas import Replica

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_ABSENT = -1
_ALIGNMENT_BYTES = 16

About = dict[str, list[Any]]
"""Per parameter of a stage: its shape, whether it trains, and where the stage has replicas a digest; JSON values."""


def about(module: nn.Module, *, has_replicas: bool) -> About:
    """Describe the parameters of a stage."""
    return {
        name: [list(parameter.shape), parameter.requires_grad, digest(parameter).hex() if has_replicas else ""]
        for name, parameter in module.named_parameters()
    }


def check_alike(stages: Mapping[Replica, About], parameters: Sequence[tuple[Copy, ...]]) -> None:
    """Check that replicas of a stage have the same parameters to the bit, and tied copies the same shape.

    Raises:
        ConfigError: they have not.
    """
    first_holder: dict[int, int] = {}
    for rank, stage in sorted(stages):
        first = first_holder.setdefault(stage, rank)
        ours, theirs = stages[rank, stage], stages[first, stage]
        for name in [*theirs, *ours]:
            if ours.get(name) != theirs.get(name):
                raise ConfigError(
                    f"the replicas of stage {stage} on ranks {first} and {rank} differ in the parameter {name!r}; "
                    "they must start alike"
                )
    for copies in parameters:
        shapes = {(stage, name): stages[rank, stage][name][0] for rank, stage, name in copies}
        if any(shape != shapes[copies[0][1:]] for shape in shapes.values()):
            raise ConfigError(f"tied: copies of one parameter have different shapes: {shapes}")


class CopySums:
    """Gives all copies of a parameter the sum of their gradients, in the order of the copies.

    Args:
        parameters: the model's parameters, as :func:`pipert.numerics.model_parameters` gives them.
        here: those of this process.
        rank: this process's rank; None if all ranks live in it.
        group: the ranks' process group, or None.
    """

    def __init__(
        self,
        parameters: Sequence[tuple[Copy, ...]],
        here: Mapping[Copy, nn.Parameter],
        rank: int | None,
        group: Group | None,
    ) -> None:
        self._shared = [copies for copies in parameters if len(copies) > 1 and any(copy in here for copy in copies)]
        self._here = here
        self._group = group
        self._outgoing: dict[int, list[Copy]] = {}
        self._incoming: dict[int, list[Copy]] = {}
        self._shape: dict[Copy, torch.Size] = {}
        for copies in self._shared:
            mine = [copy for copy in copies if copy in here]
            self._shape |= dict.fromkeys(copies, here[mine[0]].shape)
            for peer in {copy.rank for copy in copies} - {rank} if rank is not None else ():
                self._outgoing.setdefault(peer, []).extend(mine)
                self._incoming.setdefault(peer, []).extend(copy for copy in copies if copy.rank == peer)

    def __call__(self) -> None:
        """Sum the gradients. Every rank of the group calls this."""
        here = self._here
        gradients = {copy: gradient_of(here[copy]) for copies in self._shared for copy in copies if copy in here}
        if self._outgoing:
            gradients |= self._arrived(gradients)
        for copies in self._shared:
            total = sum_copies(gradients.get(copy) for copy in copies)
            if total is not None:
                for copy in copies:
                    if copy in here:
                        set_gradient(here[copy], total)

    def _arrived(self, gradients: Mapping[Copy, Tensor | None]) -> dict[Copy, Tensor]:
        """Exchange gradients with the other ranks: first, which there are and of what type, then their bytes."""
        assert self._group is not None
        sent = {peer: _types([gradients[copy] for copy in copies]) for peer, copies in self._outgoing.items()}
        received = {peer: torch.empty(len(copies), dtype=torch.int64) for peer, copies in self._incoming.items()}
        exchange(self._group, sent, received)
        outgoing, incoming = {}, {}
        arrived: dict[Copy, Tensor] = {}
        for peer in self._outgoing:
            outgoing[peer], places = self._parcel(self._outgoing[peer], sent[peer])
            for copy, place in places.items():
                place.copy_(gradients[copy])  # type: ignore[arg-type]  # there is one, or it had no place
            incoming[peer], places = self._parcel(self._incoming[peer], received[peer])
            arrived |= places
        exchange(self._group, outgoing, incoming)
        device = next(iter(self._here.values())).device  # there is a copy here, or there is no peer
        return {copy: gradient.to(device) for copy, gradient in arrived.items()}

    def _parcel(self, copies: Sequence[Copy], types: Tensor) -> tuple[Tensor, dict[Copy, Tensor]]:
        """Make one piece of memory for the gradients of ``copies``, and give the place of each that there is."""
        spans: dict[Copy, tuple[int, int, torch.dtype]] = {}
        end = 0
        for copy, code in zip(copies, types.tolist(), strict=True):
            if code != _ABSENT:
                num_bytes = self._shape[copy].numel() * _DTYPES[code].itemsize
                spans[copy] = (end, end + num_bytes, _DTYPES[code])
                end += -(-num_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        payload = torch.empty(end, dtype=torch.uint8)
        places = {
            copy: payload[start:stop].view(dtype).view(self._shape[copy])
            for copy, (start, stop, dtype) in spans.items()
        }
        return payload, places


def _types(gradients: Sequence[Tensor | None]) -> Tensor:
    return torch.tensor([_ABSENT if gradient is None else _DTYPES.index(gradient.dtype) for gradient in gradients])
