"""The output layer's heavy parts in plain torch, on any device and in any floating dtype: what the kernels must equal.

Products and sums are in fp32 (fp64 for fp64); E' is stored in the dtype of X. Below, V may also count only a shard's
real columns, and n the rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pipert.kernels.accumulation import accumulation_dtype
from pipert.kernels.coefficients import Coefficients, coefficients
from pipert.kernels.loss_options import LossOptions
from pipert.kernels.reference.scatter import add_rows
from pipert.kernels.statistics import RowStatistics, combine
from pipert.kernels.token_losses import token_losses
from pipert.kernels.vocab_shard import VocabShard


@dataclass(frozen=True, slots=True)
class _Logits:
    """A chunk of logits after bias and cap, their exponentials, and what the soft cap's derivative is made from."""

    z_nV: torch.Tensor
    exp_nV: torch.Tensor
    tanh_nV: torch.Tensor | None
    reference_n: torch.Tensor
    target_n: torch.Tensor


class ReferenceBackend:
    """The :class:`~pipert.kernels.backend.Backend` in plain torch.

    ``max_workspace_bytes`` bounds the logits of a chunk of rows; low-precision inputs are copied to fp32 besides.
    ``num_sms`` has no meaning here.
    """

    def locate(
        self, targets_N: torch.Tensor, shard: VocabShard, ignore_index: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`~pipert.kernels.backend.Backend`."""
        kept_N = targets_N != ignore_index
        # An ignored target may be a row of the vocabulary.
        return torch.where(kept_N, shard.local(targets_N.long()), -1), kept_N

    def combine(self, parts_pKN: torch.Tensor, *, weighted_extra: bool) -> RowStatistics:
        """See :class:`~pipert.kernels.backend.Backend`."""
        return combine(parts_pKN, weighted_extra=weighted_extra)

    def losses(
        self, all_shards: RowStatistics, targets_N: torch.Tensor, options: LossOptions, vocab_size: int
    ) -> torch.Tensor:
        """See :class:`~pipert.kernels.backend.Backend`."""
        return token_losses(all_shards, targets_N, options, vocab_size)

    def coefficients(
        self,
        own: RowStatistics,
        all_shards: RowStatistics,
        loss_grad: torch.Tensor,
        kept_N: torch.Tensor,
        options: LossOptions,
        vocab_size: int,
    ) -> Coefficients:
        """See :class:`~pipert.kernels.backend.Backend`."""
        return coefficients(own, all_shards, loss_grad, kept_N, options, vocab_size)

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
        """S; see :class:`~pipert.kernels.backend.Backend`."""
        exp_NV = x_ND.new_empty(len(x_ND), len(w_VD))
        exp_NV[:, num_real:] = 0
        packed_KN = _new_statistics(x_ND)
        for rows, logits in _chunks(x_ND, w_VD, local_N, num_real, bias_V, soft_cap, max_workspace_bytes):
            exp_nV = logits.exp_nV
            extra_n = logits.z_nV.sum(1) if sum_logits else torch.zeros_like(logits.reference_n)
            packed_KN[:, rows] = torch.stack([logits.reference_n, exp_nV.sum(1), logits.target_n, extra_n])
            if logits.tanh_nV is not None:
                exp_nV.mul_(1 - logits.tanh_nV.square())
            held_n = local_N[rows] >= 0
            exp_nV[held_n, local_N[rows][held_n]] = 0
            exp_NV[rows, :num_real] = exp_nV
        return exp_NV, RowStatistics(packed_KN)

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
        """Forward only; see :class:`~pipert.kernels.backend.Backend`."""
        packed_KN = _new_statistics(x_ND)
        for rows, logits in _chunks(x_ND, w_VD, local_N, num_real, bias_V, soft_cap, max_workspace_bytes):
            sum_exp_n = logits.exp_nV.sum(1)
            # A logit of -inf has the weight 0, and 0 * -inf would be NaN.
            finite_nV = logits.z_nV.clamp(min=torch.finfo(logits.z_nV.dtype).min) if entropy else None
            extra_n = torch.zeros_like(sum_exp_n) if finite_nV is None else (logits.exp_nV * finite_nV).sum(1)
            packed_KN[:, rows] = torch.stack([logits.reference_n, sum_exp_n, logits.target_n, extra_n])
        return RowStatistics(packed_KN)

    def product(self, exp_NV: torch.Tensor, w_VD: torch.Tensor, *, num_sms: int | None) -> torch.Tensor:
        """Return ``E' W``; see :class:`~pipert.kernels.backend.Backend`."""
        dtype = accumulation_dtype(w_VD.dtype)
        return exp_NV.to(dtype) @ w_VD.to(dtype)

    def input_grad(
        self, product_ND: torch.Tensor, w_VD: torch.Tensor, local_N: torch.Tensor, a_N: torch.Tensor, b_N: torch.Tensor
    ) -> torch.Tensor:
        """Return ``a ⊙ (E' W) + b ⊙ W[y]``; see :class:`~pipert.kernels.backend.Backend`."""
        b_N = torch.where(local_N >= 0, b_N, 0)
        return product_ND.mul_(a_N[:, None]).add_(b_N[:, None] * w_VD[local_N.clamp(min=0)])

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
        """T; see :class:`~pipert.kernels.backend.Backend`."""
        x_ND = x_ND.to(main_grad_VD.dtype)
        main_grad_VD.addmm_(exp_NV.to(main_grad_VD.dtype).T, a_N[:, None] * x_ND)
        add_rows(main_grad_VD, local_N, b_N[:, None] * x_ND)

    def embed(self, w_VD: torch.Tensor, local_N: torch.Tensor) -> torch.Tensor:
        """Return ``W[local]``; see :class:`~pipert.kernels.backend.Backend`."""
        return torch.where((local_N >= 0)[:, None], w_VD[local_N.clamp(min=0)], 0)

    def add_embedding_grad(self, main_grad_VD: torch.Tensor, grad_ND: torch.Tensor, local_N: torch.Tensor) -> None:
        """Do ``main_grad += scatter_local(grad)``; see :class:`~pipert.kernels.backend.Backend`."""
        add_rows(main_grad_VD, local_N, grad_ND.to(main_grad_VD.dtype))


def _new_statistics(x_ND: torch.Tensor) -> torch.Tensor:
    return x_ND.new_empty(4, len(x_ND), dtype=accumulation_dtype(x_ND.dtype))


def _chunks(
    x_ND: torch.Tensor,
    w_VD: torch.Tensor,
    local_N: torch.Tensor,
    num_real: int,
    bias_V: torch.Tensor | None,
    soft_cap: float | None,
    max_workspace_bytes: int | None,
) -> Iterator[tuple[slice, _Logits]]:
    """Yield the logits of so many rows at a time that they, and three times their size beside them, fit the bound."""
    dtype = accumulation_dtype(x_ND.dtype)
    w_VD = w_VD[:num_real].to(dtype)
    bias_V = None if bias_V is None else bias_V[:num_real].to(dtype)
    num_rows = len(x_ND)
    if max_workspace_bytes is not None:
        num_rows = max(1, max_workspace_bytes // (4 * dtype.itemsize * max(1, num_real)))
    for start in range(0, len(x_ND), max(1, num_rows)):
        rows = slice(start, min(start + num_rows, len(x_ND)))
        yield rows, _logits(x_ND[rows].to(dtype), w_VD, local_N[rows], bias_V, soft_cap)


def _logits(
    x_nD: torch.Tensor, w_VD: torch.Tensor, local_n: torch.Tensor, bias_V: torch.Tensor | None, soft_cap: float | None
) -> _Logits:
    z_nV = x_nD @ w_VD.T if bias_V is None else torch.addmm(bias_V, x_nD, w_VD.T)
    tanh_nV = None
    if soft_cap is not None:
        tanh_nV = z_nV.div_(soft_cap).tanh_()
        z_nV = soft_cap * tanh_nV
    if len(w_VD) == 0:
        nothing_n = z_nV.new_zeros(len(z_nV))
        return _Logits(z_nV, z_nV, tanh_nV, nothing_n - torch.inf, nothing_n)
    reference_n = z_nV.amax(1)
    # Where all logits are -inf, so is the reference, and -inf - -inf would be NaN.
    exp_nV = (z_nV - torch.where(reference_n == -torch.inf, 0, reference_n)[:, None]).exp_()
    target_n = torch.where(local_n >= 0, z_nV.gather(1, local_n.clamp(min=0)[:, None])[:, 0], 0)
    return _Logits(z_nV, exp_nV, tanh_nV, reference_n, target_n)
