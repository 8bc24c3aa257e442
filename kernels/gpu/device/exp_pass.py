"""S after a matrix product of the library: one pass over fp32 logits, which L2 may still hold, to E' and its sums.

Shapes: N tokens, V rows of the shard, C columns of a block; K = 3 sums of P blocks of columns.
"""

import triton
import triton.language as tl

from pipert.kernels.gpu.device.logits import exp_and_sums, take_target, target_logits


@triton.jit
def exp_pass(
    logits_ptr, out_NV, local_N, bias_ptr, statistics_4N, partial_KPN,
    first_row, first_col, num_cols, N, V, num_real, num_parts, soft_cap,
    BLOCK: tl.constexpr, BIAS: tl.constexpr, CAP: tl.constexpr, EXTRA: tl.constexpr, STORE: tl.constexpr,
):  # fmt: skip
    """Do a block of a row of logits [rows, num_cols], of which the first belongs to first_row and first_col of E'."""
    row = first_row + tl.program_id(0)
    start = tl.program_id(1) * BLOCK
    col_C = start + tl.arange(0, BLOCK)
    inside_C = col_C < num_cols
    raw_C = tl.load(logits_ptr + tl.program_id(0).to(tl.int64) * num_cols + col_C, mask=inside_C, other=0.0)
    first = first_col + start
    one = tl.zeros((1,), dtype=tl.int32)
    local = tl.load(local_N + row).to(tl.int32)
    local_R = one + local
    reference_R = one.to(tl.float32) + tl.load(statistics_4N + row)
    # Past the end of the chunk there are real columns of the next one.
    end = tl.minimum(num_real, first_col + num_cols)
    raw_RC = raw_C[None, :]
    target_R = tl.zeros((1,), dtype=tl.float32)
    if ((local >= first) & (local < first + BLOCK)) | (first + BLOCK > end):
        raw_RC, target_R = take_target(raw_RC, first, local_R, end, BLOCK)
    exp_RC, sum_R, max_R, extra_R = exp_and_sums(
        raw_RC, first, reference_R, bias_ptr, num_real, soft_cap, BLOCK, BIAS, CAP, EXTRA
    )
    if STORE:
        at = out_NV + row.to(tl.int64) * V + first + tl.arange(0, BLOCK)[None, :]
        tl.store(at, exp_RC.to(tl.bfloat16), mask=inside_C[None, :])
    here_R = (local_R >= first) & (local_R < tl.minimum(first + BLOCK, end))
    target_R = target_logits(target_R, local_R, here_R, bias_ptr, soft_cap, BIAS, CAP)
    tl.store(statistics_4N + 2 * N + row + one, target_R, mask=here_R)
    partial = partial_KPN + (first // BLOCK) * N + row + one
    tl.store(partial, sum_R)
    tl.store(partial + num_parts * N, max_R)
    if EXTRA:
        tl.store(partial + 2 * num_parts * N, extra_R)
