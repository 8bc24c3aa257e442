"""A scheduling problem: where the model's stages stand, what their ops cost, how much a rank may hold."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipert.costs import Costs, StageCosts, tolerated
from pipert.errors import ConfigError

if TYPE_CHECKING:
    from pipert.ir import Program
    from pipert.plan import Plan


@dataclass(frozen=True, slots=True)
class Times:
    """How long the ops of one (stage, microbatch) take on their rank.

    Attributes:
        F: forward.
        I: input gradient.
        W: weight gradient.
        B: full backward.
        R: recomputed forward.
    """

    F: float
    I: float  # noqa: E741
    W: float
    B: float
    R: float

    @property
    def backward(self) -> float:
        """The shortest backward, full or in halves."""
        return min(self.B, self.I + self.W)

    @property
    def input_part(self) -> float:
        """The least time of a backward before the stage before it can go on."""
        return min(self.B, self.I)

    @property
    def weight_part(self) -> float:
        """What the shortest backward has left after that."""
        return self.backward - self.input_part


@dataclass(frozen=True, slots=True)
class Job:
    """Microbatches that are all alike: they take the same path, and their ops the same times.

    Attributes:
        microbatches: which ones, ascending.
        path: the rank of each stage.
        times: per stage.
        delays: per stage, how long its input takes to arrive; 0 for stage 0, and where the stage before it stands on
            the same rank.
        grad_delays: per stage, the same for the gradient of its input, which goes to the stage before.
    """

    microbatches: tuple[int, ...]
    path: tuple[int, ...]
    times: tuple[Times, ...]
    delays: tuple[float, ...]
    grad_delays: tuple[float, ...]

    def stages_on(self, rank: int) -> tuple[int, ...]:
        """List the stages of the path that stand on ``rank``, ascending."""
        return tuple(stage for stage, holder in enumerate(self.path) if holder == rank)


@dataclass(frozen=True, slots=True)
class Problem:
    """What a schedule is sought for.

    Attributes:
        num_ranks: p.
        jobs: the microbatches, like with like.
        memory: per stage, its costs, of which the activations count.
        memory_limit: the most activation that a rank may hold; None: no limit.
    """

    num_ranks: int
    jobs: tuple[Job, ...]
    memory: tuple[StageCosts, ...]
    memory_limit: float | None = None

    @classmethod
    def of(cls, placed: Program | Plan, costs: Costs, memory_limit: float | None = None) -> Problem:
        """Take the placement of a program or plan; its order does not matter.

        Raises:
            ConfigError: the costs are for other sizes, or the memory limit is below what one microbatch takes.
        """
        stages = costs.for_plan(placed)
        groups: dict[tuple[int, tuple[float, ...]], list[int]] = {}
        for microbatch, path in enumerate(placed.path_of):
            scale = tuple(stage.scale_of(microbatch) for stage in stages)
            groups.setdefault((path, scale), []).append(microbatch)
        jobs = tuple(
            _job(members, placed.paths[path], scale, stages, costs) for (path, scale), members in groups.items()
        )
        problem = cls(placed.num_ranks, jobs, stages, memory_limit)
        if memory_limit is not None and problem.least_memory > tolerated(memory_limit):
            raise ConfigError(
                f"no schedule keeps the memory limit of {memory_limit:g}: the least limit is "
                f"{problem.least_memory:g}, which a rank takes for the activations of one microbatch"
            )
        return problem

    @property
    def least_memory(self) -> float:
        """The least memory limit that a schedule can keep.

        Every rank must at some time hold the activations of all its stages for one microbatch: when it runs the F of
        the last of them, no I has come back. Microbatches one after another need no more, but for what is kept of
        those before.
        """
        return max(map(self._least_memory_of, range(self.num_ranks)))

    def _least_memory_of(self, rank: int) -> float:
        visits = [(len(job.microbatches), [self.memory[stage] for stage in job.stages_on(rank)]) for job in self.jobs]
        kept = sum(count * stage.act_kept for count, stages in visits for stage in stages)
        freed = min(sum(stage.act - stage.act_kept for stage in stages) for _, stages in visits if stages)
        return max(kept + freed, *(sum(stage.act for stage in stages) for _, stages in visits))


def _job(
    members: Sequence[int],
    path: tuple[int, ...],
    scale: tuple[float, ...],
    stages: tuple[StageCosts, ...],
    costs: Costs,
) -> Job:
    def delay(source: int, destination: int) -> float:
        return 0.0 if source == destination else sum(costs.transfer(source, destination))

    factors = [factor / costs.speed_of(rank) for factor, rank in zip(scale, path, strict=True)]
    times = tuple(
        Times(
            stage.F * factor, stage.I * factor, stage.W * factor, stage.full_backward * factor, stage.recompute * factor
        )
        for stage, factor in zip(stages, factors, strict=True)
    )
    delays = (0.0, *(delay(before, after) for before, after in itertools.pairwise(path)))
    grad_delays = (0.0, *(delay(after, before) for before, after in itertools.pairwise(path)))
    return Job(tuple(members), path, times, delays, grad_delays)
