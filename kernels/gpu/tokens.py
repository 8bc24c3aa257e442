"""What is done token by token around S and T, launched.

Shapes: N tokens, p shards, 4 statistics.
"""

from __future__ import annotations

import torch
import triton

from pipert.kernels.coefficients import Coefficients
from pipert.kernels.gpu.device.tokens import combine_shards, late_coefficients, locate_targets, token_losses
from pipert.kernels.gpu.memory import empty
from pipert.kernels.loss_options import LossOptions
from pipert.kernels.statistics import RowStatistics
from pipert.kernels.vocab_shard import VocabShard

_BLOCK = 256


def locate(targets_N: torch.Tensor, shard: VocabShard, ignore_index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """See :meth:`pipert.kernels.backend.Backend.locate`."""
    n, device = targets_N.shape[0], targets_N.device
    local_N, kept_N = empty((n,), torch.int64, device), empty((n,), torch.bool, device)
    if n > 0:
        locate_targets[_grid(n)](
            targets_N, local_N, kept_N.view(torch.int8), n, shard.start, shard.num_real, ignore_index,
            BLOCK=_BLOCK, num_warps=4,
        )  # fmt: skip
    return local_N, kept_N


def combined(parts_p4N: torch.Tensor, *, weighted_extra: bool) -> RowStatistics:
    """See :func:`pipert.kernels.statistics.combine`."""
    p, rows, n = parts_p4N.shape
    all_4N = empty((rows, n), torch.float32, parts_p4N.device)
    if n > 0:
        combine_shards[_grid(n)](
            parts_p4N.contiguous(), all_4N, p, n, WEIGHTED=weighted_extra, BLOCK=_BLOCK, num_warps=4
        )
    return RowStatistics(all_4N)


def losses(all_shards: RowStatistics, targets_N: torch.Tensor, options: LossOptions, vocab_size: int) -> torch.Tensor:
    """See :func:`pipert.kernels.token_losses.token_losses`."""
    n, packed_4N = targets_N.shape[0], all_shards.packed_KN.contiguous()
    loss_N = empty((n,), torch.float32, targets_N.device)
    if n > 0:
        token_losses[_grid(n)](
            packed_4N, targets_N.contiguous(), loss_N, n, vocab_size, options.ignore_index,
            options.label_smoothing, options.z_loss, SMOOTH=options.label_smoothing > 0, ZLOSS=options.z_loss > 0,
            BLOCK=_BLOCK, num_warps=4,
        )  # fmt: skip
    return loss_N


def late(
    own: RowStatistics,
    all_shards: RowStatistics,
    loss_grad: torch.Tensor,
    kept_N: torch.Tensor,
    options: LossOptions,
    vocab_size: int,
) -> Coefficients:
    """See :func:`pipert.kernels.coefficients.coefficients`."""
    n, device, smooth = kept_N.shape[0], kept_N.device, options.label_smoothing > 0
    a_N, b_N = empty((n,), torch.float32, device), empty((n,), torch.float32, device)
    q_N = empty((n,), torch.float32, device) if smooth else None
    if n > 0:
        late_coefficients[_grid(n)](
            own.packed_KN.contiguous(), all_shards.packed_KN.contiguous(), loss_grad.contiguous(),
            kept_N.view(torch.int8), a_N, b_N, a_N if q_N is None else q_N, n, options.label_smoothing, options.z_loss,
            options.label_smoothing / vocab_size, options.soft_cap or 1.0, EACH=loss_grad.numel() > 1 or n == 1,
            SMOOTH=smooth, ZLOSS=options.z_loss > 0, CAP=options.soft_cap is not None, BLOCK=_BLOCK, num_warps=4,
        )  # fmt: skip
    return Coefficients(a_N, b_N, q_N)


def _grid(n: int) -> tuple[int]:
    return (triton.cdiv(n, _BLOCK),)
