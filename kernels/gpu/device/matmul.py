"""A persistent matrix product with an fp32 result, for a given number of programs."""

import triton
import triton.language as tl

from pipert.kernels.gpu.device.tiles import halves, multiply, tile_of


@triton.jit
def put_piece(
    tile_RC, out_ptr, first_m, first_n, M, N, ROWS: tl.constexpr, COLS: tl.constexpr, ACCUMULATE: tl.constexpr
):  # fmt: skip
    """Store a piece of a tile, or add it."""
    row = first_m + tl.arange(0, ROWS)
    col = first_n + tl.arange(0, COLS)
    inside = (row < M)[:, None] & (col < N)[None, :]
    where_RC = out_ptr + row.to(tl.int64)[:, None] * N + col[None, :]
    if ACCUMULATE:
        tile_RC += tl.load(where_RC, mask=inside, other=0.0)
    tl.store(where_RC, tile_RC, mask=inside)


@triton.jit
def put_half(
    tile_RC, out_ptr, first_m, first_n, M, N, ROWS: tl.constexpr, COLS: tl.constexpr, ACCUMULATE: tl.constexpr
):  # fmt: skip
    """Do so in two pieces, one after the other, which needs less shared memory."""
    left_RC, right_RC = halves(tile_RC, ROWS, COLS)
    put_piece(left_RC, out_ptr, first_m, first_n, M, N, ROWS, COLS // 2, ACCUMULATE)
    put_piece(right_RC, out_ptr, first_m, first_n + COLS // 2, M, N, ROWS, COLS // 2, ACCUMULATE)


@triton.jit
def persistent_matmul(
    a, b, out_ptr, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    TRANS_A: tl.constexpr, ACCUMULATE: tl.constexpr,
    FLATTEN: tl.constexpr, TMA: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """``out [M, N] (+)= A B`` in fp32; B lies [K, N], A lies [M, K], or [K, M] where TRANS_A."""
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    for index in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0), flatten=FLATTEN):
        tile_m, tile_n = tile_of(index, tiles_m, tiles_n, GROUP_M)
        first_m = tile_m * BLOCK_M
        first_n = tile_n * BLOCK_N
        acc = multiply(a, b, first_m, first_n, M, N, K, BLOCK_M, BLOCK_N, BLOCK_K, TRANS_A, False, TMA, UPCAST)
        left_RC, right_RC = halves(acc, BLOCK_M, BLOCK_N)
        put_half(left_RC, out_ptr, first_m, first_n, M, N, BLOCK_M, BLOCK_N // 2, ACCUMULATE)
        put_half(right_RC, out_ptr, first_m, first_n + BLOCK_N // 2, M, N, BLOCK_M, BLOCK_N // 2, ACCUMULATE)
