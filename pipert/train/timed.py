"""``--timed``: the same schedule on stages that only let the time pass, to compare prediction and measurement."""

from __future__ import annotations

from pathlib import Path

from pipert.costs import Costs, StageCosts
from pipert.engine import Engine
from pipert.errors import ConfigError
from pipert.ops import LaneKind
from pipert.plan import Plan
from pipert.replicas import Replica
from pipert.stages import Timed
from pipert.train.digest import Digests
from pipert.train.place import Place
from pipert.train.work import StepNote


class TimedWork:
    """See Work. ``costs`` are those of ``--timed``, in ms."""

    def __init__(self, costs: Costs, plan: Plan, place: Place) -> None:
        stage_costs = costs.for_plan(plan)
        stages = {
            (rank, stage): timed_stage(stage_costs[stage], stage, plan.num_stages, costs.speed_of(rank))
            for rank, stage in place.replicas
        }
        delays = {}
        if place.group is not None:  # one process hands over from rank to rank in no time
            edges = [(lane.peer, lane.rank) for lane in plan.lanes if lane.kind is LaneKind.RECV]
            delays = {edge: costs.transfer(*edge) for edge in edges}
        self._engine = Engine(plan, stages, process_group=place.group, link_delays_ms=delays)

    def step(self, step: int) -> StepNote:
        """See Work."""
        result = self._engine.step()
        return StepNote(result.records, result.peak_activation_bytes)

    def costs(self) -> dict[Replica, StageCosts]:
        """See Work. Nothing is measured."""
        return {}

    def vocab_costs(self) -> list[dict[str, float]]:
        """See Work."""
        return []

    def digests(self) -> Digests:
        """See Work. There are no parameters."""
        return {}

    def save(self, num_steps: int) -> Path:
        """See Work."""
        raise ConfigError("--timed trains nothing, so there is nothing to save")

    def close(self) -> None:
        """See Work."""
        self._engine.close()


def timed_stage(costs: StageCosts, stage: int, num_stages: int, speed: float) -> Timed:
    """Return a stage that takes what ``costs`` say, on a rank of this speed."""
    costs = costs.scaled(1 / speed)
    return Timed(
        F=costs.F,
        I=costs.I,
        W=costs.W,
        B=costs.full_backward,
        R=costs.recompute,
        microbatch_scale=costs.microbatch_scale,
        stage=stage,
        num_stages=num_stages,
    )
