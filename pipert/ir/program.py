"""A schedule as data: the compute ops of every rank, in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipert.ir.op import Op
from pipert.ir.paths import OnPaths, Paths


@dataclass(frozen=True, slots=True)
class Program(OnPaths):
    """What every rank computes in one step. Transfers, lanes and memory are added by lowering.

    A *path* is a whole copy of the model laid over the ranks: the rank of each stage. Most schedules have one path; in
    a bidirectional one there are several, a stage stands on several ranks (it has *replicas*), and every microbatch
    takes one path from end to end, so that (stage, microbatch) still names one piece of work on one rank.

    Attributes:
        name: where it comes from, for messages and traces.
        paths: per path, the rank of each stage.
        path_of: per microbatch, the path that it takes.
        ranks: the compute ops of each rank, in order.
    """

    name: str
    paths: Paths
    path_of: tuple[int, ...]
    ranks: tuple[tuple[Op, ...], ...]

    @classmethod
    def single_path(
        cls, name: str, stage_ranks: Sequence[int], num_microbatches: int, ranks: Sequence[Sequence[Op]]
    ) -> Program:
        """Make a program in which each stage stands on one rank, ``stage_ranks[stage]``."""
        return cls(name, (tuple(stage_ranks),), (0,) * num_microbatches, tuple(map(tuple, ranks)))

    @property
    def num_ranks(self) -> int:
        """How many ranks the program is for."""
        return len(self.ranks)

    def rank_of(self, stage: int, microbatch: int) -> int:
        """Return the rank that works on a (stage, microbatch)."""
        return self.paths[self.path_of[microbatch]][stage]

    def __str__(self) -> str:
        from pipert.ir.grid import grid

        return grid(self)
