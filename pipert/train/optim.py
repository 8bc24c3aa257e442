"""AdamW over the parameters of some stages, with fp32 master weights where the model's own are smaller."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from pipert.numerics import Copy, gradient_of
from pipert.replicas import Replica
from pipert.train.config import TrainConfig

_WEIGHT_DECAY = 0.1


def stage_parameters(modules: Mapping[Replica, nn.Module]) -> dict[Copy, nn.Parameter]:
    """Return every parameter of the stages; names are those in the whole model."""
    return {
        Copy(rank, stage, name): parameter
        for (rank, stage), module in modules.items()
        for name, parameter in module.named_parameters()
    }


class AdamW(torch.optim.AdamW):
    """AdamW (arXiv 1711.05101; β 0.9, 0.95; decay 0.1 on matrices). Parameters below fp32 get fp32 master weights.

    ``masters`` are what it updates; fp32 parameters are their own masters. ``step`` copies them into the model.
    """

    def __init__(self, parameters: Mapping[Copy, nn.Parameter], lr: float) -> None:
        self.model_parameters = dict(parameters)
        self.masters: dict[Copy, Tensor] = {
            key: parameter if parameter.dtype == torch.float32 else parameter.detach().float()
            for key, parameter in parameters.items()
        }
        matrices = [master for master in self.masters.values() if master.dim() > 1]
        vectors = [master for master in self.masters.values() if master.dim() <= 1]
        groups = [{"params": matrices, "weight_decay": _WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
        super().__init__(groups, lr=lr, betas=(0.9, 0.95), fused=True)
        for master in self.masters.values():  # made now, so that a checkpoint can be loaded into it
            self.state[master] = {
                "step": torch.zeros((), device=master.device),
                "exp_avg": torch.zeros_like(master),
                "exp_avg_sq": torch.zeros_like(master),
            }

    def set_lr(self, lr: float) -> None:
        """Use this learning rate from the next step on."""
        for group in self.param_groups:
            group["lr"] = lr

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step along ``main_grad`` or ``grad``."""
        for key, parameter in self.model_parameters.items():
            if self.masters[key] is not parameter:
                grad = gradient_of(parameter)
                self.masters[key].grad = None if grad is None else grad.float()
        super().step(closure)
        for key, parameter in self.model_parameters.items():
            if self.masters[key] is not parameter:
                parameter.copy_(self.masters[key])
                self.masters[key].grad = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the model's gradients."""
        for parameter in self.model_parameters.values():
            parameter.grad = None
            if getattr(parameter, "main_grad", None) is not None:
                parameter.main_grad = None  # type: ignore[attr-defined]


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the learning rate of a step (from 0): a linear rise over the warm-up, then a cosine to a tenth."""
    if step < config.warmup:
        return config.lr * (step + 1) / (config.warmup + 1)
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))
