"""Passes over [N, D]: the scaling before T, the gradient after S, the embedding's rows.

Shapes: N tokens, D hidden, V rows of the shard.
"""

import triton
import triton.language as tl


@triton.jit
def scale_rows(x_ND, a_N, out_ND, D, BLOCK: tl.constexpr):
    """``out = a ⊙ x`` in bf16."""
    row = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ND + row * D + col, mask=col < D, other=0.0).to(tl.float32)
    tl.store(out_ND + row * D + col, (x * tl.load(a_N + row)).to(tl.bfloat16), mask=col < D)


@triton.jit
def add_target_rows(product_ND, w_VD, local_N, a_N, b_N, D, BLOCK: tl.constexpr):
    """``product = a ⊙ product + b ⊙ w[local]`` in place; no second part where local is -1."""
    row = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    local = tl.load(local_N + row)
    product = tl.load(product_ND + row * D + col, mask=col < D, other=0.0)
    w = tl.load(w_VD + local * D + col, mask=col < tl.where(local >= 0, D, 0), other=0.0).to(tl.float32)
    grad = tl.load(a_N + row) * product + tl.where(local >= 0, tl.load(b_N + row), 0.0) * w
    tl.store(product_ND + row * D + col, grad, mask=col < D)


@triton.jit
def gather_rows(w_VD, local_N, out_ND, D, BLOCK: tl.constexpr):
    """``out = w[local]``; zeros where local is -1."""
    row = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    local = tl.load(local_N + row)
    w = tl.load(w_VD + local * D + col, mask=col < tl.where(local >= 0, D, 0), other=0.0)
    tl.store(out_ND + row * D + col, w, mask=col < D)
