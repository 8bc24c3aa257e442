"""Makes the stages that an engine drives out of what its user gives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from pipert.engine.routes import recomputed_stages
from pipert.errors import ConfigError
from pipert.stages import Stage, StageProtocol

if TYPE_CHECKING:
    from pipert.plan import Plan


def adopt(
    plan: Plan, stages: Mapping[int, nn.Module | StageProtocol], ranks: Iterable[int]
) -> dict[int, StageProtocol]:
    """Wrap modules in :class:`pipert.Stage`, and check that the stages are those that ``ranks`` hold in ``plan``.

    Raises:
        ConfigError: stages are missing or too many, are no stages, share a parameter, or lie on a device that this
            build does not move.
    """
    here = {stage for rank in ranks for stage in plan.chunks(rank)}
    if set(stages) != here:
        raise ConfigError(
            f"the plan puts stages {_list(here)} on {_ranks(ranks)} (of {plan.num_ranks} ranks and {plan.num_stages} "
            f"stages), but stages {_list(stages)} were given; is the plan for other ranks?"
        )
    recomputed = recomputed_stages(plan)
    adopted = {index: _adopt(index, stages[index], index in recomputed) for index in sorted(here)}
    _check_not_shared(modules_of(adopted))
    return adopted


def modules_of(stages: Mapping[int, StageProtocol]) -> dict[int, nn.Module]:
    """Return the modules of those stages that have one."""
    return {index: stage.module for index, stage in stages.items() if isinstance(stage, Stage)}


def _adopt(index: int, stage: Any, recomputed: bool) -> StageProtocol:
    if isinstance(stage, nn.Module):
        stage = Stage(stage, recompute=recomputed)
    if not isinstance(stage, StageProtocol):
        raise ConfigError(f"stage {index} is a {type(stage).__name__}: neither a module nor a stage")
    if isinstance(stage, Stage):
        _check_device(index, stage.module)
        if recomputed and not stage.recomputes:
            raise ConfigError(f"the plan recomputes stage {index}: make it Stage(module, recompute=True)")
    return stage


def _check_not_shared(modules: Mapping[int, nn.Module]) -> None:
    owners: dict[int, int] = {}
    for index, module in modules.items():
        for name, parameter in module.named_parameters():
            owner = owners.setdefault(id(parameter), index)
            if owner != index:
                raise ConfigError(
                    f"stages {owner} and {index} share the parameter {name!r}; give each its own copy, and name the "
                    "copies in tied"
                )


def _check_device(index: int, module: nn.Module) -> None:
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.device.type != "cpu":
            raise ConfigError(
                f"stage {index}: {name} is on {tensor.device}; this build moves host memory only, so move it to the CPU"
            )


def _ranks(ranks: Iterable[int]) -> str:
    listed = list(ranks)
    return f"rank {listed[0]}" if len(listed) == 1 else f"ranks {_list(listed)}"


def _list(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(numbers))) or "none"
