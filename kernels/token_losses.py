"""Each token's loss from the statistics of all shards.

Shapes: N tokens.
"""

from __future__ import annotations

import torch

from pipert.kernels.loss_options import LossOptions
from pipert.kernels.statistics import RowStatistics


def token_losses(
    all_shards: RowStatistics, targets_N: torch.Tensor, options: LossOptions, vocab_size: int
) -> torch.Tensor:
    """Return the losses [N]; 0 where the target is ignored, NaN where it is out of range.

    Args:
        all_shards: the combined statistics.
        targets_N: rows of the whole vocabulary, or ``options.ignore_index``.
        options: what the loss is; see :class:`~pipert.kernels.loss_options.LossOptions`.
        vocab_size: real rows of the whole vocabulary.
    """
    epsilon, zloss = options.label_smoothing, options.z_loss
    lse_N = all_shards.lse_N
    loss_N = lse_N - (1 - epsilon) * all_shards.target_N
    if epsilon:
        loss_N = loss_N - epsilon / vocab_size * all_shards.extra_N
    if zloss:
        loss_N = loss_N + zloss * lse_N.square()
    outside_N = (targets_N < 0) | (targets_N >= vocab_size)
    loss_N = torch.where(outside_N, torch.nan, loss_N)
    return torch.where(targets_N == options.ignore_index, 0, loss_N)
