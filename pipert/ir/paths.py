"""What follows from the paths of a program or a plan."""

from __future__ import annotations

Paths = tuple[tuple[int, ...], ...]
"""Per path, the rank of each stage."""


class OnPaths:
    """Copies of a model laid over ranks, and microbatches that take them; see :class:`pipert.Program`."""

    __slots__ = ()

    paths: Paths
    path_of: tuple[int, ...]

    @property
    def num_stages(self) -> int:
        """How many stages the model is cut into."""
        return len(self.paths[0])

    @property
    def num_microbatches(self) -> int:
        """How many microbatches one step has."""
        return len(self.path_of)

    def holders(self, stage: int) -> tuple[int, ...]:
        """List the ranks that hold ``stage``, ascending: one, unless it has replicas."""
        return tuple(sorted({path[stage] for path in self.paths}))

    def chunks(self, rank: int) -> tuple[int, ...]:
        """List the stages that ``rank`` holds, ascending."""
        return tuple(stage for stage in range(self.num_stages) if any(path[stage] == rank for path in self.paths))
