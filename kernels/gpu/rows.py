"""Passes over [N, D], launched.

Shapes: N tokens, D hidden, V rows of the shard; H blocks of B sorted tokens.
"""

from __future__ import annotations

import torch
import triton

from pipert.kernels.gpu.device.rows import add_target_rows, gather_rows, scale_rows
from pipert.kernels.gpu.device.scatter import add_heads, add_runs, sort_tokens
from pipert.kernels.gpu.memory import empty

_BLOCK = 2048
_TOKENS = 16
#: Up to here every token counting all others takes less time than the launches of a radix sort.
_COUNTING = 16384


def scaled(x_ND: torch.Tensor, a_N: torch.Tensor) -> torch.Tensor:
    """Return ``a ⊙ x`` in the dtype of x."""
    out_ND = empty(x_ND.shape, x_ND.dtype, x_ND.device)
    scale_rows[_grid(x_ND)](x_ND, a_N, out_ND, x_ND.shape[1], BLOCK=_BLOCK, num_warps=4)
    return out_ND


def add_targets(
    product_ND: torch.Tensor, w_VD: torch.Tensor, local_N: torch.Tensor, a_N: torch.Tensor, b_N: torch.Tensor
) -> None:
    """``product = a ⊙ product + b ⊙ w[local]`` in place."""
    add_target_rows[_grid(product_ND)](
        product_ND, w_VD, local_N, a_N, b_N, product_ND.shape[1], BLOCK=_BLOCK, num_warps=4
    )


def gathered(w_VD: torch.Tensor, local_N: torch.Tensor) -> torch.Tensor:
    """Return ``w[local]``, zeros where local is -1."""
    out_ND = empty((local_N.shape[0], w_VD.shape[1]), w_VD.dtype, w_VD.device)
    gather_rows[_grid(out_ND)](w_VD, local_N, out_ND, w_VD.shape[1], BLOCK=_BLOCK, num_warps=4)
    return out_ND


def _grid(matrix_ND: torch.Tensor) -> tuple[int, int]:
    return matrix_ND.shape[0], triton.cdiv(matrix_ND.shape[1], _BLOCK)


def scatter_add(
    main_VD: torch.Tensor, rows_ND: torch.Tensor, local_N: torch.Tensor, scale_N: torch.Tensor | None
) -> None:
    """``main[local] += scale ⊙ rows``, in a fixed order; rows whose local is -1 go nowhere."""
    n, d = rows_ND.shape
    order_N, sorted_N = _sorted(local_N)
    blocks = triton.cdiv(n, _TOKENS)
    heads_HD = empty((blocks, d), main_VD.dtype, main_VD.device)
    add_runs[(blocks, triton.cdiv(d, 1024))](
        main_VD, rows_ND, main_VD if scale_N is None else scale_N, order_N, sorted_N, heads_HD, n, d,
        BLOCK_B=_TOKENS, BLOCK_C=1024, SCALE=scale_N is not None, num_warps=4,
    )  # fmt: skip
    add_heads[(blocks, triton.cdiv(d, 128))](
        main_VD, sorted_N, heads_HD, n, d, BLOCK_B=_TOKENS, BLOCK_H=32, BLOCK_C=128, num_warps=4
    )


def _sorted(local_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the stable order of the tokens by target, and the targets in it."""
    n = local_N.shape[0]
    if n > _COUNTING:
        sorted_N, order_N = torch.sort(local_N, stable=True)
        return order_N, sorted_N
    order_N, sorted_N = (empty((n,), local_N.dtype, local_N.device) for _ in range(2))
    sort_tokens[(triton.cdiv(n, 32),)](local_N, order_N, sorted_N, n, BLOCK=32, CHUNK=256, num_warps=4)
    return order_N, sorted_N
