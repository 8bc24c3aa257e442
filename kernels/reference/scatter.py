"""Adding rows to those of another tensor that an index names, in a fixed order.

Shapes: N rows to add, D their length, V rows of the sum.
"""

from __future__ import annotations

import torch


def add_rows(sum_VD: torch.Tensor, index_N: torch.Tensor, rows_ND: torch.Tensor) -> None:
    """Add ``rows_ND[n]`` to ``sum_VD[index_N[n]]``, in the order of n; rows with a negative index are left out."""
    kept_N = index_N >= 0
    index_n, rows_nD = index_N[kept_N], rows_ND[kept_N]
    if sum_VD.is_cuda:
        # It sorts by index first, whereas index_add_ would use atomics.
        sum_VD.index_put_((index_n,), rows_nD, accumulate=True)
    else:
        # One row after the other, whereas index_put_ would use threads.
        sum_VD.index_add_(0, index_n, rows_nD)
