"""The gradients of an output layer, gathered chunk by chunk of its rows.

Shapes: N tokens, D hidden, V rows of the shard (padding included).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipert.kernels.accumulation import accumulation_dtype
from pipert.kernels.output_shard import OutputShard, ScoreState
from pipert.kernels.statistics import RowStatistics


class GradientSums:
    """Sums in fp32 (fp64 for fp64) of those gradients of (x, weight, bias) that are wanted; the others are None.

    Args:
        x_ND: the layer's whole input.
        w_VD: the weight.
        wanted: which of the three.
        main_grad_VD: added to, if given, in the place of a new tensor.
        bias_main_grad_V: the same for the bias.
    """

    def __init__(
        self,
        x_ND: torch.Tensor,
        w_VD: torch.Tensor,
        wanted: Sequence[bool],
        main_grad_VD: torch.Tensor | None = None,
        bias_main_grad_V: torch.Tensor | None = None,
    ) -> None:
        self._x_ND = x_ND
        dtype = accumulation_dtype(x_ND.dtype)
        self._wants_dx = wanted[0]
        self.dx_ND: torch.Tensor | None = None
        self.dw_VD = self.db_V = None
        if wanted[1]:
            self.dw_VD = torch.zeros_like(w_VD, dtype=dtype) if main_grad_VD is None else main_grad_VD
        if wanted[2]:
            self.db_V = w_VD.new_zeros(len(w_VD), dtype=dtype) if bias_main_grad_V is None else bias_main_grad_V

    def add(
        self, rows: slice, layer: OutputShard, state: ScoreState, all_shards: RowStatistics, loss_grad_N: torch.Tensor
    ) -> None:
        """Add the gradients from these rows of x, whose state, statistics and gradient of losses are given."""
        late = layer.coefficients(state, all_shards, loss_grad_N)
        if self._wants_dx:
            self._put(rows, layer.input_grad(state, all_shards, loss_grad_N, late=late))
        if self.dw_VD is not None:
            layer.add_weight_grad(state, all_shards, loss_grad_N, self.dw_VD, self.db_V, late=late)
        elif self.db_V is not None:
            layer.add_bias_grad(state, late, self.db_V)

    def _put(self, rows: slice, grad_nD: torch.Tensor) -> None:
        if len(grad_nD) == len(self._x_ND):
            self.dx_ND = grad_nD
            return
        if self.dx_ND is None:
            self.dx_ND = torch.empty_like(self._x_ND, dtype=grad_nD.dtype)
        self.dx_ND[rows] = grad_nD

    def all_or_empty(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the three, an empty tensor in the place of None."""
        dx_ND = self._or_empty(self.dx_ND)
        dx_ND = dx_ND.view_as(self._x_ND) if self._wants_dx else dx_ND
        return dx_ND, self._or_empty(self.dw_VD), self._or_empty(self.db_V)

    def _or_empty(self, sums: torch.Tensor | None) -> torch.Tensor:
        return self._x_ND.new_empty(0, dtype=accumulation_dtype(self._x_ND.dtype)) if sums is None else sums
