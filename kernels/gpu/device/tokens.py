"""What is done token by token around S and T, each in one launch: there are few bytes to it, so launches are its time.

Shapes: N tokens, p shards, 4 statistics, B tokens of a program.
"""

import triton
import triton.language as tl


@triton.jit
def locate_targets(targets_N, local_N, kept_N, N, start, num_real, ignore, BLOCK: tl.constexpr):
    """Write each target's row in the shard, -1 where another has it or the token is ignored; and whether it is kept."""
    at_B = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside_B = at_B < N
    target_B = tl.load(targets_N + at_B, mask=inside_B, other=0).to(tl.int64)
    kept_B = target_B != ignore
    local_B = target_B - start
    held_B = kept_B & (local_B >= 0) & (local_B < num_real)
    tl.store(local_N + at_B, tl.where(held_B, local_B, -1), mask=inside_B)
    tl.store(kept_N + at_B, kept_B.to(tl.int8), mask=inside_B)


@triton.jit
def combine_shards(parts_p4N, all_4N, p, N, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr):
    """Write the statistics of all shards, in shard order. A shard of nothing but padding weighs nothing."""
    at_B = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside_B = at_B < N
    reference_B = tl.full((BLOCK,), float("-inf"), dtype=tl.float32)
    for shard in range(0, p):
        own_B = tl.load(parts_p4N + shard * 4 * N + at_B, mask=inside_B, other=float("-inf"))
        reference_B = tl.maximum(reference_B, own_B)
    sum_B = tl.zeros((BLOCK,), dtype=tl.float32)
    target_B = tl.zeros((BLOCK,), dtype=tl.float32)
    extra_B = tl.zeros((BLOCK,), dtype=tl.float32)
    for shard in range(0, p):
        of_shard = parts_p4N + shard * 4 * N + at_B
        own_B = tl.load(of_shard, mask=inside_B, other=float("-inf"))
        scale_B = tl.where(own_B == float("-inf"), 0.0, tl.exp(own_B - reference_B))
        sum_B += tl.load(of_shard + N, mask=inside_B, other=0.0) * scale_B
        target_B += tl.load(of_shard + 2 * N, mask=inside_B, other=0.0)
        own_extra_B = tl.load(of_shard + 3 * N, mask=inside_B, other=0.0)
        extra_B += own_extra_B * scale_B if WEIGHTED else own_extra_B
    tl.store(all_4N + at_B, reference_B, mask=inside_B)
    tl.store(all_4N + N + at_B, sum_B, mask=inside_B)
    tl.store(all_4N + 2 * N + at_B, target_B, mask=inside_B)
    tl.store(all_4N + 3 * N + at_B, extra_B, mask=inside_B)


@triton.jit
def token_losses(
    all_4N, targets_N, loss_N, N, vocab_size, ignore, label_smoothing, z_loss,
    SMOOTH: tl.constexpr, ZLOSS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the losses: 0 where ignored, NaN where the target is out of range."""
    at_B = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside_B = at_B < N
    target_B = tl.load(targets_N + at_B, mask=inside_B, other=0).to(tl.int64)
    lse_B = tl.load(all_4N + at_B, mask=inside_B, other=0.0)
    lse_B += tl.log(tl.load(all_4N + N + at_B, mask=inside_B, other=1.0))
    loss_B = lse_B - (1 - label_smoothing) * tl.load(all_4N + 2 * N + at_B, mask=inside_B, other=0.0)
    if SMOOTH:
        loss_B -= label_smoothing / vocab_size * tl.load(all_4N + 3 * N + at_B, mask=inside_B, other=0.0)
    if ZLOSS:
        loss_B += z_loss * lse_B * lse_B
    loss_B = tl.where((target_B < 0) | (target_B >= vocab_size), float("nan"), loss_B)
    tl.store(loss_N + at_B, tl.where(target_B == ignore, 0.0, loss_B), mask=inside_B)


@triton.jit
def late_coefficients(
    own_4N, all_4N, loss_grad, kept_N, a_N, b_N, q_N, N, label_smoothing, z_loss, smooth_each, soft_cap,
    EACH: tl.constexpr, SMOOTH: tl.constexpr, ZLOSS: tl.constexpr, CAP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write a, b and (SMOOTH) q of :mod:`pipert.kernels.coefficients`; the loss gradient is one number unless EACH."""
    at_B = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside_B = at_B < N
    kept_B = tl.load(kept_N + at_B, mask=inside_B, other=0) != 0
    if EACH:
        grad_B = tl.load(loss_grad + at_B, mask=inside_B & kept_B, other=0.0).to(tl.float32)
    else:
        grad_B = tl.where(kept_B, tl.load(loss_grad).to(tl.float32), 0.0)
    own_B = tl.load(own_4N + at_B, mask=inside_B, other=0.0)
    lse_B = tl.load(all_4N + at_B, mask=inside_B, other=0.0)
    lse_B += tl.log(tl.load(all_4N + N + at_B, mask=inside_B, other=1.0))
    z_B = tl.load(all_4N + 2 * N + at_B, mask=inside_B, other=0.0)
    u_B = grad_B * (1 + 2 * z_loss * lse_B) if ZLOSS else grad_B
    # An ignored token has 0 in place of its target's logit: without the bound, exp could be infinite.
    b_B = u_B * tl.exp(tl.minimum(z_B - lse_B, 0.0)) - grad_B * (1 - label_smoothing)
    if CAP:
        b_B *= 1 - (z_B / soft_cap) * (z_B / soft_cap)
    alpha_B = tl.where(own_B == float("-inf"), 0.0, tl.exp(own_B - lse_B))
    tl.store(a_N + at_B, u_B * alpha_B, mask=inside_B)
    tl.store(b_N + at_B, b_B, mask=inside_B)
    if SMOOTH:
        tl.store(q_N + at_B, grad_B * smooth_each, mask=inside_B)
