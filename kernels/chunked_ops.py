"""A weighted sum of losses with its gradients in one pass over chunks of rows, as torch operators.

The gradients are made in the forward, where no chunk's E' outlives the next: three products in all. The backward
multiplies them by the gradient of the sum. Shapes as in :mod:`pipert.kernels.output_ops`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pipert.kernels.accumulation import accumulation_dtype
from pipert.kernels.gradient_sums import GradientSums
from pipert.kernels.layer_settings import SCHEMA, LayerSettings
from pipert.kernels.output_ops import Grads, only_new, operator, scored_chunks

Results = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


@operator(
    "vocab_sum_and_grads",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor targets, Tensor factors, Tensor? main_grad, "
    f"Tensor? bias_main_grad, bool[] wanted, {SCHEMA}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def vocab_sum_and_grads(
    x_ND: Tensor,
    w_VD: Tensor,
    bias_V: Tensor | None,
    targets_N: Tensor,
    factors_N: Tensor,
    main_grad_VD: Tensor | None,
    bias_main_grad_V: Tensor | None,
    wanted: Sequence[bool],
    *arguments: Any,
) -> Results:
    """S and T. The main gradients are what the backward adds to.

    Returns:
        The sum of the losses times ``factors_N``; the losses [N]; its gradients in fp32 (fp64 for fp64).
    """
    settings = LayerSettings.of(*arguments)
    losses_N = torch.empty_like(factors_N)
    sums = GradientSums(x_ND, w_VD, wanted)
    for rows, layer, state in scored_chunks(x_ND, w_VD, bias_V, targets_N, settings):
        all_shards = settings.gather(layer, state.statistics)
        losses_N[rows] = layer.losses(all_shards, targets_N[rows])
        sums.add(rows, layer, state, all_shards, factors_N[rows])
    if sums.dx_ND is not None:
        settings.sum(sums.dx_ND)
    return (losses_N * factors_N).sum(), losses_N, *sums.all_or_empty()


@vocab_sum_and_grads.register_fake  # type: ignore[untyped-decorator]
def _sum_fake(
    x: Tensor,
    weight: Tensor,
    bias: Any,
    targets: Any,
    factors: Tensor,
    main_grad: Any,
    bias_main_grad: Any,
    wanted: Sequence[bool],
    *_: Any,
) -> Results:
    dtype = accumulation_dtype(x.dtype)
    shapes = x.shape, weight.shape, weight.shape[:1]
    grads = (x.new_empty(shape if want else 0, dtype=dtype) for shape, want in zip(shapes, wanted, strict=True))
    return factors.new_empty(()), torch.empty_like(factors), *grads  # type: ignore[return-value]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Results) -> None:
    ctx.dtype, ctx.num_inputs = inputs[0].dtype, len(inputs)
    ctx.main_grads = inputs[5:7]
    ctx.save_for_backward(*output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _sum_backward(ctx: Any, sum_grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if sum_grad is None:
        return tuple([None] * ctx.num_inputs)
    losses_N, *sums = ctx.saved_tensors
    wanted = list(ctx.needs_input_grad[:3])
    grads = vocab_scaled_grads(sum_grad, *sums, *ctx.main_grads, wanted, ctx.dtype)
    factors_grad = sum_grad * losses_N if ctx.needs_input_grad[4] else None
    return *only_new(grads, wanted, *ctx.main_grads), None, factors_grad, *[None] * (ctx.num_inputs - 5)


vocab_sum_and_grads.register_autograd(_sum_backward, setup_context=_save)


@operator(
    "vocab_scaled_grads",
    "(Tensor sum_grad, Tensor dx, Tensor dw, Tensor db, Tensor(a!)? main_grad, Tensor(b!)? bias_main_grad, "
    "bool[] wanted, ScalarType dtype) -> (Tensor, Tensor, Tensor)",
    ("main_grad", "bias_main_grad"),
)
def vocab_scaled_grads(
    sum_grad: Tensor,
    dx_ND: Tensor,
    dw_VD: Tensor,
    db_V: Tensor,
    main_grad_VD: Tensor | None,
    bias_main_grad_V: Tensor | None,
    wanted: Sequence[bool],
    dtype: torch.dtype,
) -> Grads:
    """Return the gradients times that of the sum, in ``dtype``; what has a main gradient is added there instead."""
    if main_grad_VD is not None and wanted[1]:
        main_grad_VD.addcmul_(dw_VD, sum_grad)
    if bias_main_grad_V is not None and wanted[2]:
        bias_main_grad_V.addcmul_(db_V, sum_grad)
    new = only_new((dx_ND, dw_VD, db_V), wanted, main_grad_VD, bias_main_grad_V)
    return tuple(_scaled(sums, sum_grad, dtype) for sums in new)  # type: ignore[return-value]


def _scaled(sums: Tensor | None, factor: Tensor, dtype: torch.dtype) -> Tensor:
    if sums is None:
        return factor.new_empty(0, dtype=dtype)
    # Without a product in fp32 in between.
    return torch.mul(sums, factor, out=torch.empty_like(sums, dtype=dtype))


@vocab_scaled_grads.register_fake  # type: ignore[untyped-decorator]
def _scaled_fake(
    sum_grad: Tensor,
    dx: Tensor,
    dw: Tensor,
    db: Tensor,
    main_grad: Tensor | None,
    bias_main_grad: Tensor | None,
    wanted: Sequence[bool],
    dtype: torch.dtype,
) -> Grads:
    new = only_new((dx, dw, db), wanted, main_grad, bias_main_grad)
    grads = (dx.new_empty(0, dtype=dtype) if sums is None else torch.empty_like(sums, dtype=dtype) for sums in new)
    return tuple(grads)  # type: ignore[return-value]
