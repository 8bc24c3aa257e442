"""Makes the stages that an engine drives out of what its user gives."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from pipert.engine.routes import recomputed_stages
from pipert.errors import ConfigError
from pipert.replicas import ByStage, Replica, by_replica
from pipert.stages import Stage, StageProtocol

if TYPE_CHECKING:
    from pipert.plan import Plan


def adopt(
    plan: Plan, stages: ByStage[nn.Module | StageProtocol], ranks: Collection[int]
) -> dict[Replica, StageProtocol]:
    """Wrap modules in :class:`pipert.Stage`, and check that the stages are those that ``ranks`` hold in ``plan``.

    Raises:
        ConfigError: stages are missing or too many, are no stages, or share a parameter.
    """
    recomputed = recomputed_stages(plan)
    adopted = {
        replica: _adopt(replica[1], stage, replica[1] in recomputed)
        for replica, stage in by_replica(plan, stages, ranks).items()
    }
    _check_not_shared(adopted)
    return adopted


def modules_of(stages: Mapping[Replica, StageProtocol]) -> dict[Replica, nn.Module]:
    """Return the modules of those stages that have one."""
    return {replica: stage.module for replica, stage in stages.items() if isinstance(stage, Stage)}


def _adopt(index: int, stage: Any, recomputed: bool) -> StageProtocol:
    if isinstance(stage, nn.Module):
        stage = Stage(stage, recompute=recomputed)
    if not isinstance(stage, StageProtocol):
        raise ConfigError(f"stage {index} is a {type(stage).__name__}: neither a module nor a stage")
    if isinstance(stage, Stage) and recomputed and not stage.recomputes:
        raise ConfigError(f"the plan recomputes stage {index}: make it Stage(module, recompute=True)")
    return stage


def _check_not_shared(stages: Mapping[Replica, StageProtocol]) -> None:
    owners: dict[int, Replica] = {}
    for replica, stage in stages.items():
        parameters = stage.module.named_parameters() if isinstance(stage, Stage) else ()
        for what, part in [*((f"parameter {name!r}", each) for name, each in parameters), ("stage", stage)]:
            owner = owners.setdefault(id(part), replica)
            if owner[1] != replica[1]:
                raise ConfigError(
                    f"stages {owner[1]} and {replica[1]} share the {what}; give each its own copy, and name copies of "
                    "parameters in tied"
                )
            if owner != replica:
                raise ConfigError(
                    f"stage {owner[1]} has one {what} for ranks {owner[0]} and {replica[0]}; give each its own copy"
                )
