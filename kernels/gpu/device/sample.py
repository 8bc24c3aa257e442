"""What S subtracts before exp: the greatest of a few of the row's logits.

Any reference near enough to the row's maximum will do, as bf16 has the exponents of fp32, and a sample is known before
the logits are made, so that these need be seen only once. The sample is spread over the whole shard: the first rows of
many vocabularies belong to tokens that are never seen, and have logits far below all others.

Shapes: N tokens, D hidden, V rows of the shard, C columns of the sample, R rows of a tile; 4 statistics.
"""

import triton
import triton.language as tl

from pipert.kernels.gpu.device.logits import cap_logits


@triton.jit
def sample_references(
    x_ND, w_VD, bias_ptr, statistics_4N, N, D, num_real, soft_cap,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
    BIAS: tl.constexpr, CAP: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Write row 0 of the statistics, the references (-inf where the shard is all padding), and zeros to row 2."""
    row_R = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    col_C = (tl.arange(0, BLOCK_C).to(tl.int64) * num_real) // BLOCK_C
    real_C = col_C < num_real
    inside_R = row_R < N
    acc_RC = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
    for first_k in range(0, D, BLOCK_K):
        k = first_k + tl.arange(0, BLOCK_K)
        x_RK = tl.load(
            x_ND + row_R.to(tl.int64)[:, None] * D + k[None, :], mask=inside_R[:, None] & (k < D)[None, :], other=0.0
        )
        w_CK = tl.load(w_VD + col_C[:, None] * D + k[None, :], mask=real_C[:, None] & (k < D)[None, :], other=0.0)
        if UPCAST:
            x_RK, w_CK = x_RK.to(tl.float32), w_CK.to(tl.float32)
        acc_RC = tl.dot(x_RK, w_CK.T, acc_RC)
    if BIAS:
        acc_RC += tl.load(bias_ptr + col_C, mask=real_C, other=0.0).to(tl.float32)[None, :]
    if CAP:
        acc_RC, _ = cap_logits(acc_RC, soft_cap)
    reference_R = tl.max(tl.where(real_C[None, :], acc_RC, float("-inf")), 1)
    tl.store(statistics_4N + row_R, reference_R, mask=inside_R)
    tl.store(statistics_4N + 2 * N + row_R, tl.zeros_like(reference_R), mask=inside_R)
