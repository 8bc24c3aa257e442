"""Where a backward begins: at the loss, scaled as the script has it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipert.errors import ConfigError

NO_LOSS = "the last stage's output is no tensor; a backward begins at a loss"


def root_grad(loss: Tensor, leaf: Tensor, config: Any) -> tuple[Tensor | None]:
    """Return the gradient of ``loss``, scaled by ``grad_scale_func``, with regard to ``leaf``; None if it has no part.

    Raises:
        ConfigError: the loss is no scalar.
    """
    scale = config.grad_scale_func
    scaled = loss if scale is None else scale(loss)
    if scaled.numel() != 1:
        raise ConfigError(f"the loss has shape {tuple(scaled.shape)}; a backward begins at a scalar")
    (grad,) = torch.autograd.grad(scaled, leaf, torch.ones_like(scaled), allow_unused=True)
    return (grad,)
