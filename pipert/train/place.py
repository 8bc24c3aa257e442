"""Where this process stands among the ranks, and how they tell each other small things."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from pipert.errors import PeerLost
from pipert.plan import Plan
from pipert.replicas import Replica, replicas


def started_ranks() -> int | None:
    """Return how many ranks a launcher has started, this one among them; None if there was none."""
    return int(os.environ["WORLD_SIZE"]) if "RANK" in os.environ and "WORLD_SIZE" in os.environ else None


@dataclass(frozen=True, slots=True)
class Place:
    """One rank of several, or all of them in one process.

    Attributes:
        rank: this process's rank; 0 where one process has all.
        replicas: what it holds of the stages.
        group: the process group, or None where one process has all ranks.
    """

    rank: int
    replicas: tuple[Replica, ...]
    group: dist.ProcessGroup | None

    def gather(self, value: Any) -> list[Any]:
        """Return every process's value, by rank, everywhere.

        Raises:
            PeerLost: a rank is gone.
        """
        if self.group is None:
            return [value]
        values: list[Any] = [None] * dist.get_world_size(self.group)
        try:
            dist.all_gather_object(values, value, group=self.group)
        except RuntimeError as error:
            raise PeerLost(f"rank {self.rank}: another rank left between two steps", rank=self.rank) from error
        return values


@contextmanager
def joined(plan: Plan, one_process: bool) -> Iterator[Place]:
    """Join the other ranks, under the environment variables of torchrun, and leave them at the end."""
    if one_process:
        yield Place(0, tuple(replicas(plan, range(plan.num_ranks))), None)
        return
    dist.init_process_group("gloo", timeout=timedelta(minutes=10))
    try:
        rank = dist.get_rank()
        yield Place(rank, tuple(replicas(plan, [rank])), dist.group.WORLD)
    finally:
        dist.destroy_process_group()
