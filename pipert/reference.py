"""One step in one process, by plain modules and autograd: what every engine and schedule equals, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipert.errors import ConfigError
from pipert.numerics import (
    Copy,
    LossReduction,
    Tie,
    add_to_main_grad,
    as_tensors,
    check_reduction,
    clip_coefficient,
    clip_gradients,
    divide_gradients,
    global_norm,
    gradient_norm,
    gradient_of,
    microbatch_loss,
    model_parameters,
    preserved_rng,
    seed_op,
    set_gradient,
    split_microbatches,
    sum_copies,
    total_loss,
)
from pipert.ops import OpKind
from pipert.replicas import ByStage, Replica, by_replica, replicas

if TYPE_CHECKING:
    from pipert.plan import Plan


@dataclass(frozen=True, slots=True)
class ReferenceResult:
    """What a reference step returns beside the gradients.

    Attributes:
        loss: the mean over microbatches, or over tokens; a scalar.
        losses: that of each microbatch, ``[num_microbatches]``.
        num_tokens: the tokens of this step and of those before it since the gradients were last finished (with
            ``loss_reduction="microbatch"``, its microbatches); a scalar.
        grad_norm: the global norm before clipping, a scalar; None after ``accumulate=True``.
    """

    loss: Tensor
    losses: Tensor
    num_tokens: Tensor
    grad_norm: Tensor | None


def reference_step(
    plan: Plan,
    modules: ByStage[nn.Module],
    inputs: Any,
    targets: Any,
    loss_fn: Callable[..., Any],
    *,
    loss_reduction: LossReduction = "microbatch",
    seed: int = 0,
    step: int = 0,
    tied: Iterable[Tie] = (),
    clip_norm: float | None = None,
    main_grad_dtype: torch.dtype | None = None,
    accumulate: bool = False,
    num_tokens: Tensor | int = 0,
) -> ReferenceResult:
    """Compute one step's loss and gradients without pipeline, engine or split backward.

    Every microbatch, ascending, runs through all modules of its path in one autograd graph. Of the plan only the order
    counts in which each replica of a stage adds its microbatches' gradients, and the ranks, in whose order replicas and
    tied copies are summed. Gradients are added to those that the parameters have already.

    Args:
        plan: any plan with these stages and microbatches.
        modules: one per stage, by its number, or by (rank, stage) where several ranks hold it; no parameter belongs to
            two of them (copies do: replicas, and see ``tied``).
        inputs: for stage 0, see :func:`pipert.numerics.split_microbatches`.
        targets: for ``loss_fn``, likewise.
        loss_fn: takes (output of the last stage, target); returns the loss, or (sum, count).
        loss_reduction: ``"microbatch"`` or ``"token"``, see :func:`pipert.numerics.microbatch_loss`.
        seed: with ``step``, stage and microbatch it seeds the random numbers of each forward on the CPU; the caller's
            random state is the same after as before.
        step: the number of this step.
        tied: copies of one parameter, as (stage, name) each; all of them, on all replicas, get one sum of gradients.
        clip_norm: the largest global norm; None does not clip.
        main_grad_dtype: as in :class:`pipert.Stage`.
        accumulate: leave out what ends a step: sums over copies, the division by tokens, the norm and clipping.
        num_tokens: the ``num_tokens`` that the accumulated steps before this one returned last.

    Returns:
        The losses and the norm; the gradients are in ``grad`` (or ``main_grad``) of the parameters.

    Raises:
        ConfigError: modules, inputs, ties or options that do not fit the plan or each other.
    """
    stages = range(plan.num_stages)
    here = by_replica(plan, modules, range(plan.num_ranks))
    reduction = check_reduction(loss_reduction)
    parameters = {replica: [p for p in module.parameters() if p.requires_grad] for replica, module in here.items()}
    flat = [p for of_replica in parameters.values() for p in of_replica]
    if len({id(p) for p in flat}) < len(flat):
        raise ConfigError("two stages share a parameter; give each its own copy, and name the copies in tied")
    orders = _orders(plan)
    sums = {replica: _OrderedSum(parameters[replica], orders[replica], main_grad_dtype) for replica in here}

    microbatches = zip(
        split_microbatches(inputs, plan.num_microbatches),
        split_microbatches(targets, plan.num_microbatches),
        strict=True,
    )
    losses = []
    with preserved_rng(), torch.enable_grad():
        for microbatch, (batch, target) in enumerate(microbatches):
            values = as_tensors(batch)
            path = [(plan.rank_of_stage(stage, microbatch), stage) for stage in stages]
            for replica in path:
                seed_op(seed, step, replica[1], microbatch)
                values = as_tensors(here[replica](*values))
            loss = microbatch_loss(loss_fn, values, target, reduction, plan.num_microbatches)
            wanted = [p for replica in path for p in parameters[replica]]
            grads = torch.autograd.grad(loss.root, wanted, loss.root_grad, allow_unused=True) if wanted else ()
            at = 0
            for replica in path:
                sums[replica].add(microbatch, grads[at : at + len(parameters[replica])])
                at += len(parameters[replica])
            losses.append(replace(loss, root=loss.value))  # without its graph

    mean, per_microbatch, count = total_loss(losses)
    count = count + num_tokens
    norm = None
    if not accumulate:
        norm = _finish(here, tied, clip_norm, count if reduction == "token" else None)
    return ReferenceResult(mean, per_microbatch, count, norm)


class _OrderedSum:
    """Adds the gradients of a replica's microbatches in the plan's order, in whatever order they come."""

    def __init__(self, parameters: list[nn.Parameter], order: list[int], main_grad_dtype: torch.dtype | None) -> None:
        self._parameters = parameters
        self._order = iter(order)
        self._next = next(self._order, None)
        self._main_grad_dtype = main_grad_dtype
        self._waiting: dict[int, Sequence[Tensor | None]] = {}

    def add(self, microbatch: int, grads: Sequence[Tensor | None]) -> None:
        self._waiting[microbatch] = grads
        while self._next is not None and self._next in self._waiting:
            for parameter, grad in zip(self._parameters, self._waiting.pop(self._next), strict=True):
                if grad is not None:
                    self._add(parameter, grad)
            self._next = next(self._order, None)

    def _add(self, parameter: nn.Parameter, grad: Tensor) -> None:
        if self._main_grad_dtype is not None:
            parameter.grad = grad
            add_to_main_grad(parameter, self._main_grad_dtype)
        elif parameter.grad is None:
            parameter.grad = grad.clone()  # autograd's results may share memory
        else:
            parameter.grad += grad


def _orders(plan: Plan) -> dict[Replica, list[int]]:
    """Return, per replica, its microbatches in the order in which their gradients are added."""
    orders: dict[Replica, list[int]] = {replica: [] for replica in replicas(plan, range(plan.num_ranks))}
    for op in plan.ops:
        for part in op.unpacked:
            if part.kind in (OpKind.BACKWARD, OpKind.WEIGHT_GRAD):
                orders[plan.rank_of_stage(part.stage, part.microbatch), part.stage].append(part.microbatch)
    for stage in range(plan.num_stages):
        done = [microbatch for rank in plan.holders(stage) for microbatch in orders[rank, stage]]
        if sorted(done) != list(range(plan.num_microbatches)):
            raise ConfigError(f"the plan has no backward for each microbatch of stage {stage}")
    return orders


def _finish(
    modules: Mapping[Replica, nn.Module], tied: Iterable[Tie], clip_norm: float | None, num_tokens: Tensor | None
) -> Tensor:
    named = {
        Copy(rank, stage, name): parameter
        for (rank, stage), module in modules.items()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }
    names: dict[Replica, list[str]] = {}
    for rank, stage, name in named:
        names.setdefault((rank, stage), []).append(name)
    tied = [tuple(tie) for tie in tied]
    for stage, name in (member for tie in tied for member in tie):
        if all((stage, name) != copy[1:] for copy in named):
            raise ConfigError(f"tied names {name!r} on stage {stage}, which has no such parameter to train")
    parameters = model_parameters(names, tied)
    for copies in parameters:
        total = sum_copies(gradient_of(named[copy]) for copy in copies) if len(copies) > 1 else None
        if total is not None:
            for copy in copies:
                set_gradient(named[copy], total)
    if num_tokens is not None:
        divide_gradients(named.values(), num_tokens)
    norm = global_norm([gradient_norm(named[copies[0]]) for copies in parameters])
    if clip_norm is not None:
        clip_gradients(named.values(), clip_coefficient(norm, clip_norm))
    return norm
