"""What a shard knows about its logits, row by row, and what all shards know together (arXiv 2411.05288, Algorithm 1).

Shapes: N tokens, p shards, K = 4 statistics.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class RowStatistics:
    """Statistics of one shard's logits ``z`` (after bias and soft cap; real columns only), or of several shards'.

    Packed into one tensor [K, N], so that one all-gather moves them. fp32, or fp64 for fp64 inputs.

    Attributes:
        packed_KN: the rows named below.
    """

    packed_KN: torch.Tensor

    @classmethod
    def pack(
        cls, reference_N: torch.Tensor, sum_exp_N: torch.Tensor, target_N: torch.Tensor, extra_N: torch.Tensor
    ) -> RowStatistics:
        """Make one of its rows."""
        return cls(torch.stack([reference_N, sum_exp_N, target_N, extra_N]))

    @property
    def reference_N(self) -> torch.Tensor:
        """What was subtracted before exp: the row's maximum, or anything near enough to it; -inf if all is padding."""
        return self.packed_KN[0]

    @property
    def sum_exp_N(self) -> torch.Tensor:
        """``Σ exp(z - reference)``, the target's own included."""
        return self.packed_KN[1]

    @property
    def target_N(self) -> torch.Tensor:
        """The target's logit ``z_y`` where this shard holds it, else 0."""
        return self.packed_KN[2]

    @property
    def extra_N(self) -> torch.Tensor:
        """``Σ z`` for label smoothing, or ``Σ exp(z - reference) z`` for entropy; else 0."""
        return self.packed_KN[3]

    @property
    def lse_N(self) -> torch.Tensor:
        """The log-sum-exp; -inf where there is no real column."""
        return self.reference_N + self.sum_exp_N.log()


def combine(parts_pKN: torch.Tensor, *, weighted_extra: bool = False) -> RowStatistics:
    """Make the statistics of all shards from those of each: the reduction C1, in shard order, the same on every rank.

    Args:
        parts_pKN: ``RowStatistics.packed_KN`` of every shard.
        weighted_extra: ``extra`` is a sum weighted by ``exp(z - reference)``, as for entropy.
    """
    reference_pN, sum_exp_pN, target_pN, extra_pN = parts_pKN.unbind(1)
    reference_N = reference_pN.amax(0)
    # A shard of nothing but padding has -inf: it weighs nothing, and -inf - -inf would be NaN.
    scale_pN = torch.where(reference_pN == -torch.inf, 0, (reference_pN - reference_N).exp())
    extra_N = (extra_pN * scale_pN if weighted_extra else extra_pN).sum(0)
    return RowStatistics.pack(reference_N, (sum_exp_pN * scale_pN).sum(0), target_pN.sum(0), extra_N)
