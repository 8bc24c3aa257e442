"""``--verify``: the whole model again, in one process with plain autograd, compared bit by bit."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipert.plan import Plan
from pipert.train import checkpoint
from pipert.train.config import TrainConfig
from pipert.train.digest import Digests, first_difference, gradient_digests, parameter_digests
from pipert.train.optim import AdamW, learning_rate, stage_parameters
from pipert.train.reference_model import ReferenceModel
from pipert.train.resume import find


@dataclass(frozen=True, slots=True)
class StepBits:
    """What is compared of one step.

    Attributes:
        losses: per microbatch; empty where the process does not hold the last stage.
        grad_norm: before clipping.
        gradients: digests of the gradients after clipping, as the optimizer sees them.
    """

    losses: tuple[float, ...]
    grad_norm: float
    gradients: Digests


class Reference:
    """The reference run. It takes the same batches through the same optimizer, and nothing else from the pipeline."""

    def __init__(self, config: TrainConfig, plan: Plan, device: torch.device) -> None:
        self._config = config
        self._model = ReferenceModel(config, plan, device)
        self._parameters = stage_parameters(self._model.modules)
        self._optimizer = AdamW(self._parameters, config.lr)
        if config.resume is not None:
            checkpoint.load(find(config.resume), self._optimizer, {}, alone=True)

    def step(self, step: int) -> StepBits:
        """Train one step."""
        result = self._model.step(step)
        assert result.grad_norm is not None
        bits = StepBits(tuple(result.losses.tolist()), result.grad_norm.item(), gradient_digests(self._parameters))
        self._optimizer.set_lr(learning_rate(self._config, step))
        self._optimizer.step()
        self._optimizer.zero_grad()
        return bits

    def parameters(self) -> Digests:
        """Return the digests of the parameters as they are now."""
        return parameter_digests(self._parameters)


def compare(step: int, pipeline: list[StepBits], reference: StepBits) -> str | None:
    """Say where the pipeline's bits (one entry per process) first differ from the reference's; None if nowhere."""
    for losses in [bits.losses for bits in pipeline if bits.losses]:
        for microbatch, (ours, theirs) in enumerate(zip(losses, reference.losses, strict=True)):
            if ours != theirs:
                return f"step {step}: the loss of microbatch {microbatch} is {ours!r}, the reference's {theirs!r}"
    gradients = {key: value for bits in pipeline for key, value in bits.gradients.items()}
    difference = first_difference(gradients, reference.gradients)
    if difference is not None:
        return f"step {step}: the gradient of {difference} differs from the reference's"
    for bits in pipeline:
        if bits.grad_norm != reference.grad_norm:
            return f"step {step}: the gradient norm is {bits.grad_norm!r}, the reference's {reference.grad_norm!r}"
    return None


def compare_parameters(pipeline: list[Digests], reference: Digests) -> str | None:
    """Say which parameter first differs after the last step; None if none does."""
    difference = first_difference({key: value for each in pipeline for key, value in each.items()}, reference)
    return None if difference is None else f"after the last step, {difference} differs from the reference's"
