"""From a tile of raw logits to E' and its statistics: the arithmetic of S, in fp32.

A row's target is taken out of its tile first: its entry of E' is 0, and its share of the sums is added where the sums
of all tiles are put together (``finish.py``).

Shapes: R rows (tokens) and C columns (rows of the shard) of a tile.
"""

import triton
import triton.language as tl


@triton.jit
def take_target(raw_RC, first_col, local_R, num_real, COLS: tl.constexpr):
    """Return the tile with -inf at the targets and in columns of padding, and the targets' raw logits (else 0)."""
    col_C = first_col + tl.arange(0, COLS)
    is_target_RC = col_C[None, :] == local_R[:, None]
    target_R = tl.sum(tl.where(is_target_RC, raw_RC, 0.0), 1)
    return tl.where(is_target_RC | (col_C >= num_real)[None, :], float("-inf"), raw_RC), target_R


@triton.jit
def cap_logits(z, soft_cap):
    """Return ``soft_cap tanh(z / soft_cap)``, but -inf where z is, and the derivative.

    Both come from exp(-2|u|), which is in (0, 1], so that they are exact enough at both ends.
    """
    u = z / soft_cap
    decay = tl.exp(-2.0 * tl.abs(u))
    below = 1.0 / (1.0 + decay)
    size = soft_cap * (1.0 - decay) * below
    capped = tl.where(u < 0, -size, size)
    return tl.where(z == float("-inf"), z, capped), 4.0 * decay * below * below


@triton.jit
def target_logits(raw_R, local_R, here_R, bias_ptr, soft_cap, BIAS: tl.constexpr, CAP: tl.constexpr):
    """Finish the targets' logits, by the same arithmetic as all others."""
    z_R = raw_R
    if BIAS:
        z_R += tl.load(bias_ptr + local_R, mask=here_R, other=0.0).to(tl.float32)
    if CAP:
        z_R, _ = cap_logits(z_R, soft_cap)
    return z_R


@triton.jit
def exp_and_sums(
    raw_RC,
    first_col,
    reference_R,
    bias_ptr,
    num_real,
    soft_cap,
    COLS: tl.constexpr,
    BIAS: tl.constexpr,
    CAP: tl.constexpr,
    EXTRA: tl.constexpr,
):
    """Return E' and, per row, the sum of exp, the maximum, and the extra sum, of what is not -inf.

    EXTRA: 0 nothing, 1 the sum of z, 2 the sum of exp times z.
    """
    z_RC = raw_RC
    if BIAS:
        col_C = first_col + tl.arange(0, COLS)
        z_RC += tl.load(bias_ptr + col_C, mask=col_C < num_real, other=0.0).to(tl.float32)[None, :]
    if CAP:
        z_RC, slope_RC = cap_logits(z_RC, soft_cap)
    # A row without a real column has the reference -inf; -inf - -inf would be NaN.
    exp_RC = tl.exp(z_RC - tl.where(reference_R == float("-inf"), 0.0, reference_R)[:, None])
    sum_R = tl.sum(exp_RC, 1)
    max_R = tl.max(z_RC, 1)
    extra_R = tl.zeros_like(sum_R)
    if EXTRA == 1:
        extra_R = tl.sum(tl.where(z_RC == float("-inf"), 0.0, z_RC), 1)
    if EXTRA == 2:
        extra_R = tl.sum(tl.where(exp_RC == 0, 0.0, exp_RC * z_RC), 1)
    if CAP:
        exp_RC *= slope_RC
    return exp_RC, sum_R, max_R, extra_R
