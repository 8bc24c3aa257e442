"""The gradient of an output layer's bias.

Shapes: N tokens, V rows of a shard, n rows of a chunk.
"""

from __future__ import annotations

import torch

from pipert.kernels.coefficients import Coefficients
from pipert.kernels.reference.scatter import add_rows

_CHUNK_ELEMENTS = 1 << 24
"""How much of E' is converted to fp32 at a time."""


def add_bias_grad(
    bias_grad_V: torch.Tensor, exp_NV: torch.Tensor, local_N: torch.Tensor, late: Coefficients, num_real: int
) -> None:
    """``bias_grad += E'ᵀ a + scatter_y(b) - Σ q``: the weight's gradient for an input of 1."""
    num_rows = max(1, _CHUNK_ELEMENTS // exp_NV.shape[1])
    for exp_nV, a_n in zip(torch.split(exp_NV, num_rows), torch.split(late.a_N, num_rows), strict=True):
        bias_grad_V += a_n @ exp_nV.to(a_n.dtype)
    add_rows(bias_grad_V[:, None], local_N, late.b_N[:, None])
    if late.q_N is not None:
        bias_grad_V[:num_real] -= late.q_N.sum()
