"""What a step returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from pipert.plan import Plan
    from pipert.trace import Trace


@dataclass(frozen=True)
class StepResult:
    """One step, as this process saw it.

    Attributes:
        step: its number, from 0.
        plan: the plan that ran.
        loss: the loss of the step, a scalar; None on ranks without the last stage, or without a ``loss_fn``.
        losses: the loss of each microbatch ``[num_microbatches]``, of those that took another replica, too; None where
            ``loss`` is.
        grad_norm: the global gradient norm before clipping, a scalar, on every rank; None unless the step ended with
            the optimizer.
        peak_activation_bytes: per rank of this process, the most memory that its stages held after an op for
            unfinished microbatches, received inputs included; what the loss function keeps is not counted.
        read_records: gives the executor's trace records of this process's ops.
    """

    step: int
    plan: Plan = field(repr=False)
    loss: Tensor | None
    losses: Tensor | None
    grad_norm: Tensor | None
    peak_activation_bytes: dict[int, int]
    read_records: Callable[[], bytes] = field(repr=False)

    @cached_property
    def records(self) -> bytes:
        """The executor's trace records of this process's ops; see :meth:`pipert.trace.Trace.from_records`.

        On a CUDA device, reading them waits until it has finished the step, and must come before the next step.
        """
        return self.read_records()

    @cached_property
    def trace(self) -> Trace:
        """When each op of this process's ranks ran."""
        from pipert.trace import Trace

        return Trace.from_records(self.plan, [self.records], step=self.step)
