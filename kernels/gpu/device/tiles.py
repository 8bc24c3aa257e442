"""Tiles of matrices, and their products: what all the persistent matrix products share."""

import triton
import triton.language as tl


@triton.jit
def load_tile(
    source,
    first_row,
    first_col,
    num_rows,
    num_cols,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    TMA: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Load a [ROWS, COLS] tile of a contiguous matrix, zeros outside it.

    ``source`` is a tensor descriptor where TMA, else a pointer. UPCAST is for the interpreter, whose bf16 arithmetic is
    wrong.
    """
    if TMA:
        tile = source.load([first_row, first_col])
    else:
        row = first_row + tl.arange(0, ROWS)
        col = first_col + tl.arange(0, COLS)
        inside = (row < num_rows)[:, None] & (col < num_cols)[None, :]
        tile = tl.load(source + row.to(tl.int64)[:, None] * num_cols + col[None, :], mask=inside, other=0.0)
    return tile.to(tl.float32) if UPCAST else tile


@triton.jit
def tile_of(index, tiles_m, tiles_n, GROUP_M: tl.constexpr):
    """Say which tile is the ``index``-th: GROUP_M rows of tiles go together, so that L2 serves both sides."""
    per_group = GROUP_M * tiles_n
    first_m = (index // per_group) * GROUP_M
    rows = tl.minimum(tiles_m - first_m, GROUP_M)
    within = index % per_group
    return first_m + within % rows, within // rows


@triton.jit
def multiply(
    a,
    b,
    first_m,
    first_n,
    M,
    N,
    K,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TRANS_A: tl.constexpr,
    TRANS_B: tl.constexpr,
    TMA: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Return the fp32 tile [BLOCK_M, BLOCK_N] of ``A B``; A lies [K, M] where TRANS_A, B lies [N, K] where TRANS_B."""
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k in range(0, tl.cdiv(K, BLOCK_K)):
        first_k = k * BLOCK_K
        if TRANS_A:
            a_MK = load_tile(a, first_k, first_m, K, M, BLOCK_K, BLOCK_M, TMA, UPCAST).T
        else:
            a_MK = load_tile(a, first_m, first_k, M, K, BLOCK_M, BLOCK_K, TMA, UPCAST)
        if TRANS_B:
            b_KN = load_tile(b, first_n, first_k, N, K, BLOCK_N, BLOCK_K, TMA, UPCAST).T
        else:
            b_KN = load_tile(b, first_k, first_n, K, N, BLOCK_K, BLOCK_N, TMA, UPCAST)
        acc = tl.dot(a_MK, b_KN, acc)
    return acc


@triton.jit
def halves(tile, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Split a tile into its left and right halves: no data moves, and an epilogue needs half of the shared memory."""
    left, right = tl.split(tl.permute(tl.reshape(tile, (ROWS, 2, COLS // 2)), (0, 2, 1)))
    return left, right
