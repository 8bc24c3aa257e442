"""From a run's configuration to its plan; without torch, so that mistakes show at once."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from pipert import passes, sources
from pipert.costs import Costs
from pipert.errors import ConfigError
from pipert.lowering import compile
from pipert.ops import LaneKind, OpKind, Scope
from pipert.plan import Plan
from pipert.sources import Source
from pipert.train.config import ModelConfig, TrainConfig
from pipert.train.device import check_device
from pipert.train.resume import first_step
from pipert.train.text import load_text

DEFAULT_RANKS = 4
DEFAULT_MICROBATCHES = 8


def make_plan(config: TrainConfig, started_ranks: int | None) -> Plan:
    """Return the plan to run: of the plan file, else of the schedule, which may be a file too.

    Args:
        config: the run.
        started_ranks: how many ranks are running already (torchrun); None if that is ours to decide.

    Raises:
        ConfigError, PlanError: sizes do not fit, the schedule is unknown, the file is bad or for other ranks.
    """
    source = _load(config, started_ranks)
    plan = source.plan()
    _agree(source.place, plan.num_ranks, "ranks", started_ranks, config.ranks)
    _agree(source.place, plan.num_microbatches, "microbatches", config.microbatches)
    program = source.program()
    if config.recompute:
        program = passes.recompute(program, range(program.num_stages))
    if config.post_validation:
        program = passes.post_validation(program)
    if config.vocab_parallel:
        costs = _costs(config)
        known = costs if costs is not None and costs.vocab is not None else None
        program = passes.vocab_parallel(program, config.vocab_parallel, known)
    if config.recompute or config.post_validation or config.vocab_parallel:
        plan = compile(program)
    return plan


def _load(config: TrainConfig, started_ranks: int | None) -> Source:
    if config.plan is not None:
        return Source(f"the plan {config.plan}", Plan.load(config.plan))
    costs = _costs(config)
    if not sources.takes_sizes(config.schedule):
        return sources.load(config.schedule, chunks=config.chunks, costs=costs, memory_limit=config.memory_limit)
    if started_ranks is not None:
        _agree("torchrun", started_ranks, "ranks", config.ranks)
    return sources.load(
        config.schedule,
        ranks=config.ranks or started_ranks or DEFAULT_RANKS,
        microbatches=config.microbatches or DEFAULT_MICROBATCHES,
        chunks=config.chunks,
        costs=costs,
        memory_limit=config.memory_limit,
    )


def _costs(config: TrainConfig) -> Costs | None:
    """Return what a schedule is made from: the costs as given, else those of timed stages."""
    if config.costs_file is not None:
        return Costs.load(config.costs_file)
    return timed_costs(config) if config.costs is None else Costs.parse(config.costs)


def timed_costs(config: TrainConfig) -> Costs | None:
    """Return the costs of ``--timed``, the text or the file; None without it.

    Raises:
        ConfigError: they are wrong, or cannot be kept by stages that only let the time pass.
    """
    if config.timed is None:
        return None
    costs = Costs.load(config.timed) if config.timed.endswith(".toml") else Costs.parse(config.timed)
    if costs.overlap != 1:
        raise ConfigError("--timed runs the parts of an overlapped pair one after the other: leave out overlap")
    return costs


def fitted(config: TrainConfig, plan: Plan) -> TrainConfig:
    """Return the run with a model that has layers for all stages of the plan.

    Raises:
        ConfigError: the run wants a number of layers that is too small.
    """
    model = config.model
    if config.more_layers and model.num_layers < plan.num_stages:
        model = replace(model, num_layers=plan.num_stages)
    if config.timed is None:
        cut(model.num_layers, plan.num_stages)
    return replace(config, model=model)


def check(config: TrainConfig, plan: Plan) -> None:
    """Look at all else that a run needs, before its ranks are started.

    Raises:
        ConfigError: the device, the text, a folder, the checkpoint or the costs are not usable.
    """
    check_device(config.device)
    for folder in (config.runs, config.save):
        if folder is not None:
            _make_writable(folder)
    costs = timed_costs(config)
    if costs is not None:
        _check_collectives(plan, costs)
        return
    config = fitted(config, plan)
    first_step(config)
    load_text(config.data).require(config.batch_size * plan.num_microbatches * config.model.seq_len + 1)


def _check_collectives(plan: Plan, costs: Costs) -> None:
    stages = costs.for_plan(plan)
    for op in plan.ops:
        if op.kind.scope in (Scope.SHARD, Scope.MEETING):
            raise ConfigError(f"--timed has no vocabulary to split, and the plan has {op}: leave one of them out")
        if op.kind.lane is LaneKind.COLLECTIVE and stages[op.stage].time_of(op.kind):
            raise ConfigError(f"--timed spends no time on collectives such as {op}: leave out {op.kind.text.lower()}")


def recomputed_stages(plan: Plan) -> set[int]:
    """Return the stages whose forward the plan runs again before the backward."""
    return {op.stage for op in plan.ops if op.kind is OpKind.RECOMPUTE}


def cut(num_layers: int, num_stages: int) -> list[range]:
    """Return the layers of each stage; where they do not divide evenly, the first stages have one more.

    Raises:
        ConfigError: there are fewer layers than stages.
    """
    if num_layers < num_stages:
        raise ConfigError(f"{num_layers} layers do not make {num_stages} stages; --layers {num_stages} would")
    each, more = divmod(num_layers, num_stages)
    starts = [stage * each + min(stage, more) for stage in range(num_stages + 1)]
    return list(map(range, starts, starts[1:]))


def tied_parameters(config: ModelConfig, num_stages: int) -> tuple[tuple[tuple[int, str], ...], ...]:
    """Return the groups of (stage, parameter name) that are copies of one parameter."""
    if not config.tied or num_stages == 1:
        return ()
    return (((0, "embed.weight"), (num_stages - 1, "embed.weight")),)


def _make_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the folder {folder} cannot be made: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"the folder {folder} cannot be written to")


def _agree(what: str, number: int, unit: str, *others: int | None) -> None:
    for other in others:
        if other is not None and other != number:
            raise ConfigError(f"{what} is for {number} {unit}, this run has {other}")
