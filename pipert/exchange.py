"""Tensors between some of the ranks of a process group, at the end of a step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch.distributed as dist
from torch import Tensor

from pipert.errors import TransportError
from pipert.rendezvous import Group


def exchange(group: Group, outgoing: Mapping[int, Tensor], incoming: Mapping[int, Tensor]) -> None:
    """Send a tensor to each rank of ``outgoing``, fill those of ``incoming``, and wait for all of it.

    Everything is posted before anything is waited for, so the ranks need no common order. Both ends know the sizes;
    empty tensors do not travel.
    """
    work = [dist.irecv(tensor, group=group, group_src=peer) for peer, tensor in incoming.items() if tensor.numel()]
    work += [dist.isend(tensor, group=group, group_dst=peer) for peer, tensor in outgoing.items() if tensor.numel()]
    for each in work:
        if each is not None:
            each.wait()


@contextmanager
def talking(rank: int | None, step: int) -> Iterator[None]:
    """Raise a failure of the process group as a TransportError that names rank and step."""
    try:
        yield
    except RuntimeError as error:
        raise TransportError(
            f"rank {rank}: the process group failed at the end of step {step}: {error}", rank=rank, step=step
        ) from error
