"""The loss behind a split output layer where only the end of the pipeline knows it.

Shapes: N tokens of a microbatch.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor


class CallersLoss(Protocol):
    """Makes a microbatch's targets, and a loss of its tokens' losses; for Algorithm 2 (arXiv 2411.05288) alone.

    Targets come to be with the last stage's output, and travel with it. The gradient of the output is linear in those
    of its tokens' losses, so it is summed for gradients of 1 and scaled where the last stage is; the gradients of the
    losses travel to the other ranks meanwhile, for T.
    """

    @property
    def num_tokens(self) -> int:
        """N, the same for every microbatch of a step and on every rank."""
        ...

    def targets(self, microbatch: int) -> Tensor:
        """Return the targets [N] of the last stage's output, on its rank, once, after its forward."""
        ...

    def loss_grad(self, microbatch: int, loss_N: Tensor) -> Tensor | None:
        """Take the losses of all tokens, on the last stage's rank, and return their gradients [N].

        With gradients disabled nobody looks at what is returned; else None stands for zeros.
        """
        ...

    def adding_weight_grad(self) -> AbstractContextManager[None]:
        """Surround a T, which adds to the gradient of this rank's shard."""
        ...
