"""What the backward split must know of Megatron's layers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from pipert.stages.graph import GradientEdge


def register() -> None:
    """Add the rules of Megatron's layers to those of the backward split."""


def fallback_reason(roots: Sequence[GradientEdge]) -> str | None:
    """Say why the graph below ``roots`` cannot be split; None if it can."""
    return None


class DelayedWgrads:
    """The weight gradients that layers put off by themselves."""

    def __init__(self, module: nn.Module) -> None:
        """Find the layers of ``module``."""

    def run(self) -> None:
        """Compute those of the earliest backward."""
