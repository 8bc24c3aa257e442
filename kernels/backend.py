"""What the output layer asks of a device: one set of functions in plain torch, one of GPU kernels.

Shapes: N tokens, D hidden, V rows of a shard (padding included, at the end).
"""

from __future__ import annotations

from typing import Protocol

import torch

from pipert.kernels.coefficients import Coefficients
from pipert.kernels.loss_options import LossOptions
from pipert.kernels.statistics import RowStatistics
from pipert.kernels.vocab_shard import VocabShard


class Backend(Protocol):
    """The heavy parts of S and T, and what is done token by token around them.

    All arguments are contiguous and checked; all results are deterministic.

    ``local_N`` holds each token's target as a row of the shard, int64, or -1 where the shard does not hold it or the
    token is ignored. Only the first ``num_real`` rows of the weight take part.
    """

    def locate(
        self, targets_N: torch.Tensor, shard: VocabShard, ignore_index: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return each target's row in the shard (``local_N``), and whether the token is not ignored [N], bool."""
        ...

    def combine(self, parts_pKN: torch.Tensor, *, weighted_extra: bool) -> RowStatistics:
        """See :func:`pipert.kernels.statistics.combine`."""
        ...

    def losses(
        self, all_shards: RowStatistics, targets_N: torch.Tensor, options: LossOptions, vocab_size: int
    ) -> torch.Tensor:
        """See :func:`pipert.kernels.token_losses.token_losses`."""
        ...

    def coefficients(
        self,
        own: RowStatistics,
        all_shards: RowStatistics,
        loss_grad: torch.Tensor,
        kept_N: torch.Tensor,
        options: LossOptions,
        vocab_size: int,
    ) -> Coefficients:
        """See :func:`pipert.kernels.coefficients.coefficients`; ``loss_grad`` is [N] or one number for all tokens."""
        ...

    def score(
        self,
        x_ND: torch.Tensor,
        w_VD: torch.Tensor,
        local_N: torch.Tensor,
        num_real: int,
        *,
        bias_V: torch.Tensor | None,
        soft_cap: float | None,
        sum_logits: bool,
        max_workspace_bytes: int | None,
        num_sms: int | None,
    ) -> tuple[torch.Tensor, RowStatistics]:
        """S: ``E'`` [N, V] in the dtype of X, and the statistics, whose ``extra`` is ``Σ z`` if ``sum_logits``.

        ``E' = exp(z - reference)``, times the soft cap's derivative, with the target's own entry and the padding set to
        0. Logits reach exp in fp32. ``max_workspace_bytes`` bounds what is allocated beside the results.
        """
        ...

    def statistics(
        self,
        x_ND: torch.Tensor,
        w_VD: torch.Tensor,
        local_N: torch.Tensor,
        num_real: int,
        *,
        bias_V: torch.Tensor | None,
        soft_cap: float | None,
        entropy: bool,
        max_workspace_bytes: int | None,
        num_sms: int | None,
    ) -> RowStatistics:
        """Forward only: the statistics alone, whose ``extra`` is ``Σ exp(z - reference) z`` if ``entropy``."""
        ...

    def product(self, exp_NV: torch.Tensor, w_VD: torch.Tensor, *, num_sms: int | None) -> torch.Tensor:
        """``E' W`` [N, D] in fp32 (fp64 for fp64): what S adds in Algorithm 2, and T's first product in Algorithm 1."""
        ...

    def input_grad(
        self, product_ND: torch.Tensor, w_VD: torch.Tensor, local_N: torch.Tensor, a_N: torch.Tensor, b_N: torch.Tensor
    ) -> torch.Tensor:
        """Return ``a ⊙ (E' W) + b ⊙ W[y]`` [N, D], made in place of the product; W[y] where the shard holds y."""
        ...

    def add_weight_grad(
        self,
        main_grad_VD: torch.Tensor,
        exp_NV: torch.Tensor,
        x_ND: torch.Tensor,
        local_N: torch.Tensor,
        a_N: torch.Tensor,
        b_N: torch.Tensor,
        *,
        num_sms: int | None,
    ) -> None:
        """T: ``main_grad += E'ᵀ (a ⊙ X) + scatter_y(b ⊙ X)``, in fp32 (fp64 for fp64); repeated targets in token order.

        It is a single matrix product: no pass over E'.
        """
        ...

    def embed(self, w_VD: torch.Tensor, local_N: torch.Tensor) -> torch.Tensor:
        """Return ``W[local]`` [N, D], zeros where the shard does not hold the token."""
        ...

    def add_embedding_grad(self, main_grad_VD: torch.Tensor, grad_ND: torch.Tensor, local_N: torch.Tensor) -> None:
        """``main_grad += scatter_local(grad)``, in token order."""
        ...
