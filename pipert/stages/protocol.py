"""What an engine asks of a stage."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

Tensors = tuple[Tensor, ...]
Grads = tuple["Tensor | None", ...]


@runtime_checkable
class StageProtocol(Protocol):
    """One stage of a pipeline, driven op by op.

    For every microbatch the engine calls ``forward``, then ``backward``, or ``input_grad`` and any time later
    ``weight_grad``. Microbatches may be in flight together, and each op may come in any order among them.

    Inputs arrive detached from any graph; those whose producer's output needed a gradient have ``requires_grad`` set.
    Outputs leave detached, with ``requires_grad`` set where the consumer must send a gradient back. ``grads`` stand in
    the order of the outputs that have it set; an entry is None where the consumer did not use that output. The
    gradients that a backward returns stand in the order of the inputs, None for an input that needs none.

    A stage may keep the tensors it is given until the last op of their microbatch, not longer.
    """

    def forward(self, microbatch: int, inputs: Tensors) -> Tensors:
        """Run the forward of ``microbatch`` and keep what its backward needs."""
        ...

    def backward(self, microbatch: int, grads: Grads) -> Grads:
        """Run the full backward: return the inputs' gradients, add the parameters' to what they have."""
        ...

    def input_grad(self, microbatch: int, grads: Grads) -> Grads:
        """Return the inputs' gradients; keep what ``weight_grad`` needs, drop the rest."""
        ...

    def weight_grad(self, microbatch: int) -> None:
        """Add the parameters' gradients to what they have; nothing of ``microbatch`` is kept after it."""
        ...

    def recompute(self, microbatch: int) -> None:
        """Run the forward again, for a stage that keeps only its inputs; at most once, before the backward."""
        ...

    def forward_only(self, microbatch: int, inputs: Tensors) -> Tensors:
        """Run the forward of ``microbatch`` without gradients and keep nothing."""
        ...

    def discard(self) -> None:
        """Drop everything kept for unfinished microbatches, after a step that failed."""
        ...

    @property
    def activation_bytes(self) -> int:
        """The memory held now for unfinished microbatches, parameters not counted."""
        ...
