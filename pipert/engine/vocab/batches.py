"""What every rank must know of a step's microbatches where the vocabulary is split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pipert.engine.vocab.adopt import splits_vocabulary
from pipert.errors import ConfigError
from pipert.numerics import LossReduction
from pipert.stages import Tensors

if TYPE_CHECKING:
    from pipert.plan import Plan


@dataclass(frozen=True, slots=True)
class Batch:
    """A microbatch, the same on all ranks.

    Attributes:
        tokens: of the input embedding; None where it is not split.
        targets: of the output layer, likewise.
        weights: of the targets; None for 1 each.
        rest: what the first stage is given beside the embedded tokens.
    """

    tokens: Tensor | None
    targets: Tensor | None
    weights: Tensor | None
    rest: Tensors


def batches(plan: Plan, inputs: Sequence[Tensors], targets: Sequence[Any], reduction: LossReduction) -> list[Batch]:
    """Sort out what the ranks need of each microbatch.

    Args:
        plan: what runs.
        inputs: per microbatch the tokens, and what the first stage is given beside their embeddings.
        targets: per microbatch, or (targets, weights).
        reduction: what the loss is averaged over.

    Raises:
        ConfigError: tokens or targets are missing on this rank, or are no integers; weights that do not fit.
    """
    embeds, scores = splits_vocabulary(plan)
    result = []
    for tensors, target in zip(inputs, targets, strict=True):
        pair = target if isinstance(target, (tuple, list)) else (target, None)
        if scores and len(pair) != 2:
            raise ConfigError(f"targets: expected a tensor, or targets and their weights, got {len(pair)} values")
        tokens = _integers("inputs", tensors[0] if tensors else None) if embeds else None
        wanted = _integers("targets", pair[0]) if scores else None
        weights = _weights(wanted, pair[1], reduction) if wanted is not None else None
        result.append(Batch(tokens, wanted, weights, tuple(tensors[1:])))
    return result


def _integers(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor) and not value.is_floating_point():
        return value
    found = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
    raise ConfigError(f"{name}: where the vocabulary is split, every rank needs all of them, as integers; got {found}")


def _weights(targets: Tensor, weights: Any, reduction: LossReduction) -> Tensor | None:
    if weights is None:
        return None
    if not isinstance(weights, Tensor) or weights.shape != targets.shape:
        found = f"a tensor of {list(weights.shape)}" if isinstance(weights, Tensor) else type(weights).__name__
        raise ConfigError(f"targets: their weights must be {list(targets.shape)}, as they are; got {found}")
    if reduction == "token" and weights.is_floating_point():
        raise ConfigError(
            "targets: with loss_reduction='token' tokens are counted, so their weights must be a mask (bool or "
            f"integers), not {weights.dtype}"
        )
    return weights
