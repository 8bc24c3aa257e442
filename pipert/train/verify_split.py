"""``--verify`` where the vocabulary is split: each step again with the unsplit model, from equal parameters.

Sums over shards are made in another order than those of one matrix product, so that numbers agree to rounding only, and
parameters would drift apart. So each step of the reference starts from the parameters that the pipeline has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipert.kernels import VocabShard
from pipert.numerics import Copy, gradient_of
from pipert.plan import Plan
from pipert.train.config import TrainConfig
from pipert.train.reference_model import ReferenceModel
from pipert.train.shards import Shards, joined

TOLERANCE = {"fp32": 1e-5, "bf16": 5e-2}
"""Per dtype, the largest relative difference of a loss, of the gradient norm, and of a gradient (its norm)."""


@dataclass(frozen=True, slots=True)
class StepValues:
    """What is compared of one step; tensors are in host memory.

    Attributes:
        losses: per microbatch; empty where the process does not hold the last stage.
        grad_norm: before clipping.
        parameters: before the step.
        gradients: after clipping.
        shards: which of them are shards of the vocabulary.
    """

    losses: tuple[float, ...]
    grad_norm: float
    parameters: Mapping[Copy, Tensor]
    gradients: Mapping[Copy, Tensor]
    shards: Shards


def parameter_values(parameters: Mapping[Copy, nn.Parameter]) -> dict[Copy, Tensor]:
    """Return copies of the parameters."""
    return {copy: parameter.detach().to("cpu", copy=True) for copy, parameter in parameters.items()}


def gradient_values(parameters: Mapping[Copy, nn.Parameter]) -> dict[Copy, Tensor]:
    """Return copies of the gradients of those that have one."""
    gradients = {copy: gradient_of(parameter) for copy, parameter in parameters.items()}
    return {copy: gradient.to("cpu", copy=True) for copy, gradient in gradients.items() if gradient is not None}


class SplitReference:
    """The unsplit model, in this process.

    Attributes:
        largest_difference: of all that was compared so far, relative.
    """

    def __init__(self, config: TrainConfig, plan: Plan, device: torch.device) -> None:
        self.largest_difference = 0.0
        self._tolerance = TOLERANCE[config.dtype]
        self._model = ReferenceModel(config, plan, device)

    def compare(self, step: int, pipeline: Sequence[StepValues]) -> str | None:
        """Say where the pipeline's step (one entry per process) first differs too much; None if nowhere."""
        self._load(_whole([values.parameters for values in pipeline], pipeline))
        result = self._model.step(step)
        gradients = _whole([values.gradients for values in pipeline], pipeline)
        losses = torch.tensor(next(values.losses for values in pipeline if values.losses))
        norm = torch.tensor(pipeline[0].grad_norm)
        assert result.grad_norm is not None
        pairs = [("a loss", losses, result.losses), ("the gradient norm", norm, result.grad_norm)]
        for module in self._model.modules.values():
            for name, parameter in module.named_parameters():
                expected = gradient_of(parameter)
                assert expected is not None
                pairs.append((f"the gradient of {name}", gradients[name], expected))
                parameter.grad = None
                if hasattr(parameter, "main_grad"):
                    parameter.main_grad = None
        return next(filter(None, [self._difference(step, *pair) for pair in pairs]), None)

    @torch.no_grad()
    def _load(self, values: Mapping[str, Tensor]) -> None:
        for module in self._model.modules.values():
            for name, parameter in module.named_parameters():
                parameter.copy_(values[name])

    def _difference(self, step: int, what: str, found: Tensor, expected: Tensor) -> str | None:
        expected = expected.cpu().double()
        difference = float((found.double() - expected).norm() / expected.norm())
        self.largest_difference = max(self.largest_difference, difference)
        if difference <= self._tolerance:
            return None
        return f"step {step}: {what} is off by {difference:.2g}, more than {self._tolerance:g}"


def _whole(values: Sequence[Mapping[Copy, Tensor]], pipeline: Sequence[StepValues]) -> dict[str, Tensor]:
    """Return the tensors of all processes by their name in the whole model, shards put together."""
    whole: dict[str, Tensor] = {}
    parts: dict[str, dict[VocabShard, Tensor]] = {}
    for tensors, of_process in zip(values, pipeline, strict=True):
        for copy, tensor in tensors.items():
            if copy in of_process.shards:
                parts.setdefault(copy.name, {})[of_process.shards[copy]] = tensor
            else:
                whole[copy.name] = tensor
    return whole | {name: joined(of_shards) for name, of_shards in parts.items()}
