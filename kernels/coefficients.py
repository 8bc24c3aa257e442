"""The late inputs of T: all that scales a gradient and may be known only after S.

With ``z`` a token's logits and L the loss of all tokens, ``dL/dz = u p - t 1[y] - q`` over the real columns, where
``p = exp(z - lse)``. S stores ``E' = exp(z - reference)`` with the target's own entry set to 0, so that

    dX = a ⊙ (E' W) + b ⊙ W[y] - q ΣW,    dW = E'ᵀ (a ⊙ X) + scatter_y(b ⊙ X) - Σ q X.

Shapes: N tokens. Everything here is fp32, or fp64 for fp64 inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipert.kernels.loss_options import LossOptions
from pipert.kernels.statistics import RowStatistics


@dataclass(frozen=True, slots=True)
class Coefficients:
    """What multiplies the parts of the gradient, per token.

    Attributes:
        a_N: of the row of E' (which the derivative of a soft cap has multiplied already).
        b_N: of the target's own row of W, or of dW; the soft cap's derivative at the target is in it.
        q_N: of every real row, for label smoothing; None without.
    """

    a_N: torch.Tensor
    b_N: torch.Tensor
    q_N: torch.Tensor | None


def coefficients(
    own: RowStatistics,
    all_shards: RowStatistics,
    loss_grad: torch.Tensor,
    kept_N: torch.Tensor,
    options: LossOptions,
    vocab_size: int,
) -> Coefficients:
    """Compute the coefficients of one shard.

    Args:
        own: this shard's own statistics.
        all_shards: the combined ones.
        loss_grad: dL/d(loss of the token), its weight and all scales included; [N], or one number for all.
        kept_N: False for ignored tokens, whose ``loss_grad`` does not matter.
        options: what the loss has beside the plain cross entropy.
        vocab_size: real rows of the whole vocabulary, for label smoothing.
    """
    own_reference_N, lse_N = own.reference_N, all_shards.lse_N
    loss_grad_N = torch.where(kept_N, loss_grad, 0).to(lse_N.dtype)
    epsilon, zloss = options.label_smoothing, options.z_loss
    u_N = loss_grad_N * (1 + 2 * zloss * lse_N) if zloss else loss_grad_N
    t_N = loss_grad_N * (1 - epsilon) if epsilon else loss_grad_N
    z_N = all_shards.target_N
    # An ignored token has no target logit, but 0 in its place: without the bound, exp could be infinite.
    b_N = u_N * (z_N - lse_N).clamp(max=0).exp() - t_N
    if options.soft_cap is not None:
        b_N = b_N * (1 - (z_N / options.soft_cap) ** 2)
    alpha_N = torch.where(own_reference_N == -torch.inf, 0, (own_reference_N - lse_N).exp())
    return Coefficients(u_N * alpha_N, b_N, loss_grad_N * (epsilon / vocab_size) if epsilon else None)
