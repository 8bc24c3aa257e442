"""A schedule as data: the compute ops of every rank, in order."""

from __future__ import annotations

from dataclasses import dataclass

from pipert.ir.op import Op


@dataclass(frozen=True, slots=True)
class Program:
    """What every rank computes in one step. Transfers, lanes and memory are added by lowering.

    Attributes:
        name: where it comes from, for messages and traces.
        stage_ranks: the rank of each stage.
        num_microbatches: how many microbatches one step has.
        ranks: the compute ops of each rank, in order.
    """

    name: str
    stage_ranks: tuple[int, ...]
    num_microbatches: int
    ranks: tuple[tuple[Op, ...], ...]

    @property
    def num_ranks(self) -> int:
        """How many ranks the program is for."""
        return len(self.ranks)

    @property
    def num_stages(self) -> int:
        """How many stages the model is cut into."""
        return len(self.stage_ranks)

    def chunks(self, rank: int) -> tuple[int, ...]:
        """List the stages that ``rank`` holds, ascending."""
        return tuple(stage for stage, holder in enumerate(self.stage_ranks) if holder == rank)

    def __str__(self) -> str:
        from pipert.ir.grid import grid

        return grid(self)
