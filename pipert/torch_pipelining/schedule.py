"""A schedule with the interface of torch's, over an engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.microbatch import TensorChunkSpec, merge_chunks, split_args_kwargs_into_chunks
from torch.nn.parallel import DistributedDataParallel

from pipert.engine import Engine
from pipert.errors import ConfigError, PipertError
from pipert.plan import Plan
from pipert.rendezvous import agree, host_group
from pipert.torch_pipelining.plan import make_plan
from pipert.torch_pipelining.stage import Batch, TorchStage


class Schedule:
    """Runs :class:`~torch.distributed.pipelining.PipelineStage` objects as torch's schedules do, to the bit.

    Making, stepping and closing it are collective over the stages' group. Gradients are added to the parameters'
    ``grad``, then divided by the number of microbatches; losses and outputs are the last stage's, detached.

    Args:
        schedule: one of torch's schedule classes or its name, one of pipert's schedules, or a file (a plan, or torch's
            CSV).
        stages: this rank's stage, or all of them.
        n_microbatches: into how many a batch is cut.
        loss_fn: ``loss_fn(output, target)`` of one microbatch, a scalar. Without one, a step is forward only.
        args_chunk_spec: how positional arguments are cut, by default on dimension 0; likewise
        kwargs_chunk_spec: keyword arguments, and
        output_merge_spec: how the microbatches' outputs are put together.
        scale_grads: whether gradients are divided by the number of microbatches.
        seed: of the random numbers of each forward (see :class:`pipert.Engine`); None leaves the generators alone, as
            torch's schedules do.
        timeout_ms: the longest wait for another rank.

    Raises:
        ConfigError: an unknown schedule; a stage that the schedule places elsewhere; what cannot be honoured: stages of
            the traced frontend, ``dw_builder``, modules under DistributedDataParallel or FSDP. Raised on every rank.
    """

    def __init__(
        self,
        schedule: str | type,
        stages: PipelineStage | Sequence[PipelineStage],
        n_microbatches: int,
        loss_fn: Callable[..., Tensor] | None = None,
        args_chunk_spec: tuple[TensorChunkSpec, ...] | None = None,
        kwargs_chunk_spec: dict[str, TensorChunkSpec] | None = None,
        output_merge_spec: dict[str, Any] | tuple[Any] | None = None,
        scale_grads: bool = True,
        *,
        seed: int | None = None,
        timeout_ms: int = 600_000,
    ) -> None:
        given = tuple(stages) if isinstance(stages, Sequence) else (stages,)
        if not given:
            raise ConfigError("stages: a rank holds at least one")
        self._given = given
        self._n_microbatches = n_microbatches
        self._loss_fn = loss_fn
        self._args_chunk_spec = args_chunk_spec
        self._kwargs_chunk_spec = kwargs_chunk_spec
        self._output_merge_spec = output_merge_spec
        self._scale_grads = scale_grads
        group = given[0].group or dist.group.WORLD
        assert group is not None
        group = host_group(group)
        self.plan = _agreed_plan(schedule, given, n_microbatches, group)
        self._stages = {
            stage.stage_index: TorchStage(stage.submod, stage.is_first, stage.is_last, loss_fn) for stage in given
        }
        self._engine = Engine(self.plan, self._stages, process_group=group, seed=seed, timeout_ms=timeout_ms)

    def step(
        self,
        *args: Any,
        target: Tensor | None = None,
        losses: list[Tensor] | None = None,
        return_outputs: bool = True,
        loss_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run one step.

        Args:
            *args: the whole batch, on the rank of the first stage.
            target: of the whole batch, cut on dimension 0, on the rank of the last stage.
            losses: is emptied and takes the microbatches' losses, on the rank of the last stage.
            return_outputs: whether to keep and return outputs.
            loss_kwargs: further arguments of ``loss_fn``.
            **kwargs: go, cut likewise, to every stage of the rank on which they are given.

        Returns:
            The merged outputs on the rank of the last stage, None elsewhere.

        Raises:
            ConfigError: the batch gives another number of microbatches, a target is missing, gradients are disabled.
            StageError, PeerLost, LaneTimeout: see :meth:`pipert.Engine.step`.
        """
        return self._run(self._loss_fn is not None, args, kwargs, target, losses, return_outputs, loss_kwargs)

    def eval(
        self,
        *args: Any,
        target: Tensor | None = None,
        losses: list[Tensor] | None = None,
        return_outputs: bool = True,
        loss_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the forwards alone, without gradients; see :meth:`step`. Without a target no loss is computed."""
        return self._run(False, args, kwargs, target, losses, return_outputs, loss_kwargs)

    def close(self) -> None:
        """Leave the other ranks; stages and gradients stay."""
        self._engine.close()

    def __enter__(self) -> Schedule:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._engine.__exit__(kind, error, traceback)

    def _run(
        self,
        trains: bool,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        target: Tensor | None,
        losses: list[Tensor] | None,
        keeps_outputs: bool,
        loss_kwargs: Mapping[str, Any] | None,
    ) -> Any:
        try:
            if trains and not torch.is_grad_enabled():
                raise ConfigError("step: gradients are disabled here; call eval")
            args_split, kwargs_split = self._split(args, kwargs)
            batch = Batch(
                args_split, kwargs_split, self._targets(target, losses, trains), loss_kwargs or {}, keeps_outputs
            )
        except BaseException:
            self.close()  # the other ranks are on their way into the step
            raise
        for stage in self._stages.values():
            stage.begin(batch)
        if trains:
            self._engine.step()
        else:
            self._engine.eval_step()
        ended = {index: stage.end() for index, stage in self._stages.items()}
        if trains and self._scale_grads:
            for each in self._given:
                each.scale_grads(self._n_microbatches)
        if self.plan.num_stages - 1 not in ended:
            return None
        outputs, computed = ended[self.plan.num_stages - 1]
        if losses is not None:
            losses[:] = computed
        return merge_chunks(outputs, self._output_merge_spec) if keeps_outputs else None

    def _split(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[list[tuple[Any, ...]], list[dict[str, Any]]]:
        if not args and not kwargs:
            return [()] * self._n_microbatches, [{}] * self._n_microbatches
        args_split, kwargs_split = split_args_kwargs_into_chunks(
            args, kwargs, self._n_microbatches, self._args_chunk_spec, self._kwargs_chunk_spec
        )
        self._check_count("the arguments", len(args_split))
        return args_split, kwargs_split

    def _targets(self, target: Tensor | None, losses: list[Tensor] | None, trains: bool) -> list[Tensor] | None:
        if self.plan.num_stages - 1 not in self._stages or self._loss_fn is None:
            return None
        if target is None:
            if trains or losses is not None:
                raise ConfigError("target: the rank of the last stage needs one, for loss_fn")
            return None
        split, _ = split_args_kwargs_into_chunks((target,), None, self._n_microbatches)
        self._check_count("target", len(split))
        return [part for (part,) in split]

    def _check_count(self, what: str, number: int) -> None:
        if number != self._n_microbatches:
            raise ConfigError(f"{what}: n_microbatches is {self._n_microbatches}, the batch gives {number}")


def _agreed_plan(
    schedule: str | type, stages: tuple[PipelineStage, ...], n_microbatches: int, group: dist.ProcessGroup
) -> Plan:
    """Return the plan; raise on every rank what is wrong on one."""
    fault: PipertError | None = None
    plan: Plan | None = None
    try:
        for stage in stages:
            _check_stage(stage, stages[0])
        plan = make_plan(schedule, stages[0].group_size, stages[0].num_stages, n_microbatches)
        _check_placement(plan, stages)
    except PipertError as error:
        fault = error
    agree(group, fault)
    assert plan is not None
    return plan


def _check_stage(stage: PipelineStage, first: PipelineStage) -> None:
    name = f"stage {stage.stage_index} on rank {stage.group_rank}"
    if not isinstance(stage, PipelineStage):
        raise ConfigError(f"{name} is a {type(stage).__name__}; only PipelineStage is run, no traced stage")
    if stage.dw_builder is not None:
        raise ConfigError(f"{name}: dw_builder is not honoured; weight gradients are split off the module's own graph")
    if (stage.num_stages, stage.group) != (first.num_stages, first.group):
        raise ConfigError(f"{name} has another num_stages or group than stage {first.stage_index}")
    for module in stage.submod.modules():
        if isinstance(module, (DistributedDataParallel, FSDPModule, FullyShardedDataParallel)):
            raise ConfigError(
                f"{name}: a module under {_wrapper(module)} is not honoured; leave it plain, and reduce the gradients "
                "over the data-parallel group after step"
            )


def _wrapper(module: torch.nn.Module) -> str:
    return "fully_shard or replicate" if isinstance(module, FSDPModule) else type(module).__name__


def _check_placement(plan: Plan, stages: tuple[PipelineStage, ...]) -> None:
    rank = stages[0].group_rank
    given, expected = tuple(sorted(stage.stage_index for stage in stages)), plan.chunks(rank)
    if given != expected:
        raise ConfigError(
            f"rank {rank} has stage(s) {_listed(given)}; {plan.name} places {_listed(expected)} there", rank=rank
        )


def _listed(stages: tuple[int, ...]) -> str:
    return ", ".join(map(str, stages))
