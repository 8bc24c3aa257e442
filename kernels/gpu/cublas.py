"""The matrix products that the library does: bf16 in, fp32 out.

On CPU tensors, which only the interpreter's tests give, the same is computed from fp32 copies: torch has no fp32 output
of bf16 products there.
"""

from __future__ import annotations

import functools

import torch


def multiply(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    """``out = a b``, ``out`` fp32."""
    if a.is_cuda:
        torch.mm(a, b, out_dtype=torch.float32, out=out)
    else:
        torch.mm(a.float(), b.float(), out=out)


def add_product(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    """``out += a b`` in place, ``out`` fp32: cuBLAS adds as it stores, and torch copies nothing where out is input."""
    if a.is_cuda:
        torch.addmm(out, a, b, out_dtype=torch.float32, out=out)
    else:
        out.addmm_(a.float(), b.float())


@functools.cache
def is_able(device: torch.device) -> bool:
    """Whether this torch has both, for this device (2.10 is the first with an fp32 ``input`` of ``addmm``)."""
    if device.type != "cuda":
        return True
    a = torch.ones(16, 16, dtype=torch.bfloat16, device=device)
    out = torch.ones(16, 16, dtype=torch.float32, device=device)
    try:
        multiply(a, a, out)
        add_product(a, a, out)
    except (TypeError, RuntimeError):
        return False
    return True
