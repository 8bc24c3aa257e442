"""The GPU's side of the output layer.

Shapes: N tokens, D hidden, V rows of a shard (padding included, at the end).
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch

from pipert.kernels.backend import Backend
from pipert.kernels.coefficients import Coefficients
from pipert.kernels.gpu import products, rows, tokens
from pipert.kernels.gpu.memory import empty
from pipert.kernels.gpu.problem import ScoreProblem
from pipert.kernels.gpu.tuning import Tuner
from pipert.kernels.gpu.ways import Route, run_score
from pipert.kernels.loss_options import LossOptions
from pipert.kernels.statistics import RowStatistics
from pipert.kernels.vocab_shard import VocabShard


class GpuBackend:
    """Triton kernels, and the library's matrix products where they win: bf16 in, fp32 sums; see :class:`Backend`.

    It reads nothing back to the host, so that all of it can be captured in a CUDA graph; what has not run before for
    its shapes is then compiled, but not measured.

    Args:
        route: the way of S, ``fused`` (one kernel) or ``library`` (cuBLAS and a pass over fp32 logits); None measures
            which is faster.
        tuning_file: where measured choices are kept; None for the user's cache folder.
    """

    def __init__(self, route: Route | None = None, tuning_file: Path | None = None) -> None:
        self._route = route
        self._tuner = Tuner(tuning_file)

    def locate(
        self, targets_N: torch.Tensor, shard: VocabShard, ignore_index: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See :meth:`Backend.locate`."""
        return tokens.locate(targets_N, shard, ignore_index)

    def combine(self, parts_pKN: torch.Tensor, *, weighted_extra: bool) -> RowStatistics:
        """See :meth:`Backend.combine`."""
        return tokens.combined(parts_pKN, weighted_extra=weighted_extra)

    def losses(
        self, all_shards: RowStatistics, targets_N: torch.Tensor, options: LossOptions, vocab_size: int
    ) -> torch.Tensor:
        """See :meth:`Backend.losses`."""
        return tokens.losses(all_shards, targets_N, options, vocab_size)

    def coefficients(
        self,
        own: RowStatistics,
        all_shards: RowStatistics,
        loss_grad: torch.Tensor,
        kept_N: torch.Tensor,
        options: LossOptions,
        vocab_size: int,
    ) -> Coefficients:
        """See :meth:`Backend.coefficients`."""
        return tokens.late(own, all_shards, loss_grad, kept_N, options, vocab_size)

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
        """S: see :meth:`Backend.score`.

        Raises:
            ConfigError: ``max_workspace_bytes`` has no room for a row of tiles.
        """
        out_NV = empty((x_ND.shape[0], w_VD.shape[0]), x_ND.dtype, x_ND.device)
        problem = ScoreProblem(x_ND, w_VD, local_N, num_real, bias_V, soft_cap, int(sum_logits), out_NV)
        return out_NV, self._score(problem, max_workspace_bytes, num_sms)

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
        """Forward only: see :meth:`Backend.statistics`; raises as :meth:`score` does."""
        problem = ScoreProblem(x_ND, w_VD, local_N, num_real, bias_V, soft_cap, 2 if entropy else 0, None)
        return self._score(problem, max_workspace_bytes, num_sms)

    def _score(self, problem: ScoreProblem, max_workspace_bytes: int | None, num_sms: int | None) -> RowStatistics:
        if problem.num_tokens == 0:
            return RowStatistics(problem.x_ND.new_empty((4, 0), dtype=torch.float32))
        return run_score(problem, self._tuner, self._route, max_workspace_bytes, num_sms)

    def product(self, exp_NV: torch.Tensor, w_VD: torch.Tensor, *, num_sms: int | None) -> torch.Tensor:
        """``E' W``: see :meth:`Backend.product`."""
        if exp_NV.shape[0] == 0:
            return exp_NV.new_empty((0, w_VD.shape[1]), dtype=torch.float32)
        return products.multiply(exp_NV, w_VD, self._tuner, num_sms)

    def input_grad(
        self, product_ND: torch.Tensor, w_VD: torch.Tensor, local_N: torch.Tensor, a_N: torch.Tensor, b_N: torch.Tensor
    ) -> torch.Tensor:
        """In place of the product: see :meth:`Backend.input_grad`."""
        if product_ND.shape[0] > 0:
            rows.add_targets(product_ND, w_VD, local_N, a_N, b_N)
        return product_ND

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
        """T: see :meth:`Backend.add_weight_grad`."""
        if x_ND.shape[0] > 0:
            products.add_transposed(main_grad_VD, exp_NV, rows.scaled(x_ND, a_N), self._tuner, num_sms)
            rows.scatter_add(main_grad_VD, x_ND, local_N, b_N)

    def embed(self, w_VD: torch.Tensor, local_N: torch.Tensor) -> torch.Tensor:
        """See :meth:`Backend.embed`."""
        if local_N.shape[0] == 0:
            return w_VD.new_empty((0, w_VD.shape[1]))
        return rows.gathered(w_VD, local_N)

    def add_embedding_grad(self, main_grad_VD: torch.Tensor, grad_ND: torch.Tensor, local_N: torch.Tensor) -> None:
        """See :meth:`Backend.add_embedding_grad`."""
        if local_N.shape[0] > 0:
            rows.scatter_add(main_grad_VD, grad_ND, local_N, None)


@functools.cache
def backend() -> Backend:
    """Return the backend for CUDA tensors, the same one every time."""
    return GpuBackend()
