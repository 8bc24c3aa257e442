"""S in one kernel: the logits of a tile are made, taken to exp and stored in bf16, and never leave the chip in fp32.

Shapes: N tokens, D hidden, V rows of the shard; R rows and C columns of a tile; K = 3 sums of P tiles of columns.
"""

import triton
import triton.language as tl

from pipert.kernels.gpu.device.logits import exp_and_sums, take_target, target_logits
from pipert.kernels.gpu.device.tiles import halves, multiply, tile_of


@triton.jit
def any_flagged(flagged_N, N, BLOCK: tl.constexpr):
    """Whether any row is flagged: each program reads them all, which takes no atomic and next to no time."""
    found = tl.zeros((BLOCK,), dtype=tl.int32)
    for first in range(0, N, BLOCK):
        row = first + tl.arange(0, BLOCK)
        found = tl.maximum(found, tl.load(flagged_N + row, mask=row < N, other=0))
    return tl.max(found, 0)


@triton.jit
def store_piece(
    raw_RC, first_row, first_col, reference_R, local_R, masked, out, bias_ptr, N, V, num_real, soft_cap,
    ROWS: tl.constexpr, COLS: tl.constexpr,
    BIAS: tl.constexpr, CAP: tl.constexpr, EXTRA: tl.constexpr, STORE: tl.constexpr, TMA_OUT: tl.constexpr,
):  # fmt: skip
    """Take a piece of a tile to E', store it, and return its sums."""
    target_R = tl.zeros((ROWS,), dtype=tl.float32)
    if masked:
        raw_RC, target_R = take_target(raw_RC, first_col, local_R, num_real, COLS)
    exp_RC, sum_R, max_R, extra_R = exp_and_sums(
        raw_RC, first_col, reference_R, bias_ptr, num_real, soft_cap, COLS, BIAS, CAP, EXTRA
    )
    if STORE:
        exp_RC = exp_RC.to(tl.bfloat16)
        if TMA_OUT:
            out.store([first_row, first_col], exp_RC)
        else:
            row_R = first_row + tl.arange(0, ROWS)
            col_C = first_col + tl.arange(0, COLS)
            inside = (row_R < N)[:, None] & (col_C < V)[None, :]
            tl.store(out + row_R.to(tl.int64)[:, None] * V + col_C[None, :], exp_RC, mask=inside)
    return sum_R, max_R, extra_R, target_R


@triton.jit
def store_half(
    raw_RC, first_row, first_col, reference_R, local_R, masked, out, bias_ptr, N, V, num_real, soft_cap,
    ROWS: tl.constexpr, COLS: tl.constexpr,
    BIAS: tl.constexpr, CAP: tl.constexpr, EXTRA: tl.constexpr, STORE: tl.constexpr, TMA_OUT: tl.constexpr,
):  # fmt: skip
    """Do so in two pieces, one after the other, which needs fewer registers and less shared memory."""
    left_RC, right_RC = halves(raw_RC, ROWS, COLS)
    sum_R, max_R, extra_R, target_R = store_piece(
        left_RC, first_row, first_col, reference_R, local_R, masked, out, bias_ptr, N, V, num_real, soft_cap,
        ROWS, COLS // 2, BIAS, CAP, EXTRA, STORE, TMA_OUT,
    )  # fmt: skip
    sum2_R, max2_R, extra2_R, target2_R = store_piece(
        right_RC, first_row, first_col + COLS // 2, reference_R, local_R, masked, out, bias_ptr, N, V, num_real,
        soft_cap,
        ROWS, COLS // 2, BIAS, CAP, EXTRA, STORE, TMA_OUT,
    )  # fmt: skip
    return sum_R + sum2_R, tl.maximum(max_R, max2_R), extra_R + extra2_R, target_R + target2_R


@triton.jit
def fused_score(
    x, w, out, local_N, bias_ptr, statistics_KN, flagged_N, partial_KPN, N, V, D, num_real, soft_cap,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    BIAS: tl.constexpr, CAP: tl.constexpr, EXTRA: tl.constexpr, STORE: tl.constexpr, REPAIR: tl.constexpr,
    FLATTEN: tl.constexpr, TMA: tl.constexpr, TMA_OUT: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Do every tile, or (REPAIR) every tile that has a flagged row.

    Reads the references from row 0 of the statistics; writes E' (STORE), the sums of every row and tile of columns, and
    the targets' logits to row 2 of the statistics.
    """
    tiles_m = tl.cdiv(N, BLOCK_M)
    tiles_n = tl.cdiv(V, BLOCK_N)
    num_tiles = tiles_m * tiles_n
    if REPAIR:
        num_tiles = tl.where(any_flagged(flagged_N, N, 1024) != 0, num_tiles, 0)
    for index in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0), flatten=FLATTEN):
        tile_m, tile_n = tile_of(index, tiles_m, tiles_n, GROUP_M)
        first_m = tile_m * BLOCK_M
        first_n = tile_n * BLOCK_N
        row_R = first_m + tl.arange(0, BLOCK_M)
        inside_R = row_R < N
        wanted = 1
        if REPAIR:
            wanted = tl.max(tl.load(flagged_N + row_R, mask=inside_R, other=0), 0)
        if wanted != 0:
            raw_RC = multiply(x, w, first_m, first_n, N, V, D, BLOCK_M, BLOCK_N, BLOCK_K, False, True, TMA, UPCAST)
            reference_R = tl.load(statistics_KN + row_R, mask=inside_R, other=0.0)
            local_R = tl.load(local_N + row_R, mask=inside_R, other=-1).to(tl.int32)
            here_R = (local_R >= first_n) & (local_R < first_n + BLOCK_N)
            masked = (tl.max(here_R.to(tl.int32), 0) != 0) | (first_n + BLOCK_N > num_real)
            left_RC, right_RC = halves(raw_RC, BLOCK_M, BLOCK_N)
            sum_R, max_R, extra_R, target_R = store_half(
                left_RC, first_m, first_n, reference_R, local_R, masked, out, bias_ptr, N, V, num_real, soft_cap,
                BLOCK_M, BLOCK_N // 2, BIAS, CAP, EXTRA, STORE, TMA_OUT,
            )  # fmt: skip
            sum2_R, max2_R, extra2_R, target2_R = store_half(
                right_RC, first_m, first_n + BLOCK_N // 2, reference_R, local_R, masked, out, bias_ptr, N, V, num_real,
                soft_cap,
                BLOCK_M, BLOCK_N // 2, BIAS, CAP, EXTRA, STORE, TMA_OUT,
            )  # fmt: skip
            partial = partial_KPN + tile_n * N + row_R
            tl.store(partial, sum_R + sum2_R, mask=inside_R)
            tl.store(partial + tiles_n * N, tl.maximum(max_R, max2_R), mask=inside_R)
            if EXTRA:
                tl.store(partial + 2 * tiles_n * N, extra_R + extra2_R, mask=inside_R)
            target_R = target_logits(target_R + target2_R, local_R, here_R, bias_ptr, soft_cap, BIAS, CAP)
            tl.store(statistics_KN + 2 * N + row_R, target_R, mask=here_R)
