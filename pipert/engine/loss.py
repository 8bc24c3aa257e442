"""The end of the pipeline: where the last stage's outputs become a loss, and the loss the first gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pipert.errors import PipertError
from pipert.numerics import LossReduction, MicrobatchLoss, microbatch_loss
from pipert.stages import Grads
from pipert.stages.graph import gradient_edge, gradients

if TYPE_CHECKING:
    from pipert.plan import Plan


class Loss:
    """Takes the last stage's outputs (a sink) and gives their gradients (a source).

    Without a ``loss_fn`` there is no loss, and the gradients are none: for stages that compute nothing real.
    """

    def __init__(
        self, loss_fn: Callable[..., Any] | None, reduction: LossReduction, plan: Plan, *, check_at_once: bool
    ) -> None:
        """``check_at_once``: look at each loss as soon as it is computed; otherwise :meth:`check` does."""
        self._check_at_once = check_at_once
        self._loss_fn = loss_fn
        self._reduction = reduction
        self._plan = plan
        num_microbatches = plan.num_microbatches
        self._roots: list[tuple[MicrobatchLoss, list[Tensor]] | None] = [None] * num_microbatches
        self._losses: list[MicrobatchLoss | None] = [None] * num_microbatches
        self._targets: Sequence[Any] = ()
        self._step = 0

    def start(self, step: int, targets: Sequence[Any]) -> None:
        """Begin a step with one target per microbatch."""
        self._step = step
        self._targets = targets

    def finish(self) -> list[MicrobatchLoss | None]:
        """Return the losses of the step by microbatch, None where none was computed here."""
        losses = self._losses
        self.clear()
        return losses

    def check(self, losses: Sequence[MicrobatchLoss | None]) -> None:
        """Look at the losses of a step; waits until they are computed.

        Raises:
            PipertError: one of them is not finite.
        """
        if not self._check_at_once:
            for microbatch, loss in enumerate(losses):
                if loss is not None:
                    self._check(microbatch, loss.value.item())

    def give(self, microbatch: int, tensors: Grads) -> None:
        """Compute the loss of ``microbatch``.

        Raises:
            PipertError: the loss is not finite.
        """
        if self._loss_fn is None or not tensors:  # nothing comes in a step that will be run again
            return
        outputs = [tensor for tensor in tensors if tensor is not None]
        target = self._targets[microbatch]
        loss = microbatch_loss(self._loss_fn, outputs, target, self._reduction, self._plan.num_microbatches)
        self.record(microbatch, MicrobatchLoss(loss.value, loss.root_grad, loss.value, loss.count))
        if loss.root.requires_grad:
            self._roots[microbatch] = (loss, [tensor for tensor in outputs if tensor.requires_grad])

    def record(self, microbatch: int, loss: MicrobatchLoss) -> None:
        """Keep the loss of ``microbatch``, which holds no graph.

        Raises:
            PipertError: the loss is not finite.
        """
        if self._check_at_once:
            self._check(microbatch, loss.value.item())
        self._losses[microbatch] = loss

    def take(self, microbatch: int) -> Grads:
        """Run the loss's backward: the gradients of the outputs that need one."""
        waiting = self._roots[microbatch]
        if waiting is None:
            return ()
        self._roots[microbatch] = None
        loss, outputs = waiting
        return tuple(gradients((gradient_edge(loss.root),), (loss.root_grad,), outputs))

    def owned(self, microbatch: int, tensors: Grads) -> Grads:
        """See :class:`pipert.engine.ports.Source`."""
        return tensors

    def clear(self) -> None:
        """See :class:`pipert.engine.ports.Source`."""
        self._roots = [None] * self._plan.num_microbatches
        self._losses = [None] * self._plan.num_microbatches
        self._targets = ()

    def _check(self, microbatch: int, value: float) -> None:
        if math.isfinite(value):
            return
        stage = self._plan.num_stages - 1
        rank = self._plan.rank_of_stage(stage, microbatch)
        raise PipertError(
            f"step {self._step}: the loss of microbatch {microbatch} is {value}, not finite "
            f"({stage}F{microbatch} on rank {rank}); look at the data and the learning rate",
            rank=rank,
            op=f"{stage}F{microbatch}",
            step=self._step,
        )
