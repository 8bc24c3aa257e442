"""Two processes on one device, their messages by ``ipc``: one rank of it, under :mod:`pipert.bench.worker`."""

from __future__ import annotations

import os
import secrets

import torch.distributed as dist

from pipert.bench import gpu, mps, pair
from pipert.bench.figure import Figure


def measure() -> list[Figure]:
    """Return the figures of the pair that the two ranks are."""
    return pair.measure(
        pair.Pair(
            device=gpu.device(),
            transport="ipc",
            name=f"ipc, two processes, {_sharing()}",
            where=f"two processes on one device, which they share {_sharing()}",
            rank=dist.get_rank(),
            session=_session,
            meet=dist.barrier,
            barred=False,
        )
    )


def _sharing() -> str:
    return "by MPS" if mps.IN_USE in os.environ else "time-sliced"


def _session() -> str:
    name = [secrets.token_hex(8)]
    dist.broadcast_object_list(name)
    return name[0]
