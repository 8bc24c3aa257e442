"""``--timed``: the same schedule on stages that only let the time pass, to compare prediction and measurement."""

from __future__ import annotations

from pathlib import Path

from pipert.costs import Costs, StageCosts
from pipert.engine import Engine
from pipert.errors import ConfigError
from pipert.plan import Plan
from pipert.stages import Timed
from pipert.train.digest import Digests
from pipert.train.place import Place
from pipert.train.work import StepNote


class TimedWork:
    """See Work. ``costs`` is the text of ``--timed``: ms, for a rank's whole share."""

    def __init__(self, costs: str, plan: Plan, place: Place) -> None:
        stage_costs = Costs.parse(costs).for_plan(plan)
        self._costs = {stage: stage_costs[stage] for stage in place.stages}
        stages = {
            stage: Timed(
                F=cost.F,
                I=cost.I,
                W=cost.W,
                B=cost.full_backward,
                R=cost.recompute,
                stage=stage,
                num_stages=plan.num_stages,
            )
            for stage, cost in self._costs.items()
        }
        self._engine = Engine(plan, stages, process_group=place.group)

    def step(self, step: int) -> StepNote:
        """See Work."""
        result = self._engine.step()
        return StepNote(result.records, result.peak_activation_bytes)

    def costs(self) -> dict[int, StageCosts]:
        """See Work. They are those that were asked for."""
        return self._costs

    def digests(self) -> Digests:
        """See Work. There are no parameters."""
        return {}

    def save(self, num_steps: int) -> Path:
        """See Work."""
        raise ConfigError("--timed trains nothing, so there is nothing to save")

    def close(self) -> None:
        """See Work."""
        self._engine.close()
