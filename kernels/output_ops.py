"""The output layer's losses and their gradients as torch operators: opaque to torch.compile, over a process group.

Shapes: N tokens, D hidden, V rows of the shard (padding included), K statistics. Results that are not wanted are empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from pipert.kernels.accumulation import accumulation_dtype
from pipert.kernels.gradient_sums import GradientSums
from pipert.kernels.layer_settings import SCHEMA, LayerSettings
from pipert.kernels.output_shard import OutputShard, ScoreState
from pipert.kernels.row_chunks import row_chunks
from pipert.kernels.statistics import RowStatistics

Grads: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""Of x, weight and bias."""


def operator(name: str, schema: str, mutates: Sequence[str] = ()) -> Callable[[Callable[..., Any]], Any]:
    """Define ``pipert::name``, whose gradients autograd must not differentiate again."""
    return torch.library.custom_op(f"pipert::{name}", mutates_args=mutates, schema=schema)


def scored_chunks(
    x_ND: Tensor, w_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor, settings: LayerSettings
) -> Iterator[tuple[slice, OutputShard, ScoreState]]:
    """Run S on so many rows at a time that their E' takes half of the bound; the other half is for S itself."""
    assert settings.max_workspace_bytes is not None
    half = max(1, settings.max_workspace_bytes // 2)
    layer = replace(settings, max_workspace_bytes=half).layer(w_VD, bias_V)
    for rows in row_chunks(len(x_ND), len(w_VD) * x_ND.element_size(), half):
        yield rows, layer, layer.score(x_ND[rows], targets_N[rows])


@operator(
    "vocab_losses",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor targets, Tensor? main_grad, Tensor? bias_main_grad, bool keep, "
    f"{SCHEMA}) -> (Tensor, Tensor, Tensor, Tensor)",
)
def vocab_losses(
    x_ND: Tensor,
    w_VD: Tensor,
    bias_V: Tensor | None,
    targets_N: Tensor,
    main_grad_VD: Tensor | None,
    bias_main_grad_V: Tensor | None,
    keep: bool,
    *arguments: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """S. The main gradients are what the backward adds to.

    Returns:
        The losses [N]; E' [N, V] if ``keep`` (else the backward runs S again, in chunks); the statistics of this shard
        and of all shards [K, N].
    """
    settings = LayerSettings.of(*arguments)
    layer = settings.layer(w_VD, bias_V)
    if keep:
        state = layer.score(x_ND, targets_N)
        exp_NV, own = state.exp_NV, state.statistics
    else:
        exp_NV, own = x_ND.new_empty(0), layer.statistics(x_ND, targets_N)
    all_shards = settings.gather(layer, own)
    return layer.losses(all_shards, targets_N), exp_NV, own.packed_KN, all_shards.packed_KN


@vocab_losses.register_fake  # type: ignore[untyped-decorator]
def _losses_fake(
    x: Tensor, weight: Tensor, bias: Any, targets: Any, main_grad: Any, bias_main_grad: Any, keep: bool, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = accumulation_dtype(x.dtype)
    exp = x.new_empty(len(x), len(weight)) if keep else x.new_empty(0)
    packed = x.new_empty(4, len(x), dtype=dtype)
    return x.new_empty(len(x), dtype=dtype), exp, packed, torch.empty_like(packed)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, targets, ctx.main_grad, ctx.bias_main_grad, ctx.keep, *ctx.arguments = inputs
    ctx.save_for_backward(x, weight, bias, targets, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    # The gradient of E', all zeros, would be as large as E'.
    ctx.set_materialize_grads(False)


def _losses_backward(ctx: Any, loss_grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    wanted = list(ctx.needs_input_grad[:3])
    nothing = [None] * (4 + len(ctx.arguments))
    if loss_grad is None:
        return None, None, None, *nothing
    main_grads = ctx.main_grad, ctx.bias_main_grad
    grads = vocab_grads(loss_grad, *ctx.saved_tensors, *main_grads, ctx.keep, wanted, *ctx.arguments)
    return *only_new(grads, wanted, *main_grads), *nothing


vocab_losses.register_autograd(_losses_backward, setup_context=_save)


def only_new(
    grads: Grads, wanted: Sequence[bool], main_grad: Tensor | None, bias_main_grad: Tensor | None
) -> list[Tensor | None]:
    """Return the gradients for autograd: None where none is wanted, or a main gradient has taken it."""
    main_grads = None, main_grad, bias_main_grad
    return [g if want and main is None else None for g, want, main in zip(grads, wanted, main_grads, strict=True)]


@operator(
    "vocab_grads",
    "(Tensor loss_grad, Tensor x, Tensor weight, Tensor? bias, Tensor targets, Tensor exp, Tensor own, Tensor all, "
    f"Tensor(a!)? main_grad, Tensor(b!)? bias_main_grad, bool keep, bool[] wanted, {SCHEMA}) "
    "-> (Tensor, Tensor, Tensor)",
    ("main_grad", "bias_main_grad"),
)
def vocab_grads(
    loss_grad_N: Tensor,
    x_ND: Tensor,
    w_VD: Tensor,
    bias_V: Tensor | None,
    targets_N: Tensor,
    exp_NV: Tensor,
    own_KN: Tensor,
    all_KN: Tensor,
    main_grad_VD: Tensor | None,
    bias_main_grad_V: Tensor | None,
    keep: bool,
    wanted: Sequence[bool],
    *arguments: Any,
) -> Grads:
    """T: the gradients in the inputs' dtype; those that have a main gradient are added to it, and empty here."""
    settings = LayerSettings.of(*arguments)
    sums = GradientSums(x_ND, w_VD, wanted, main_grad_VD, bias_main_grad_V)
    if keep:
        layer = settings.layer(w_VD, bias_V)
        state = layer.resume(x_ND, targets_N, exp_NV, RowStatistics(own_KN))
        sums.add(slice(None), layer, state, RowStatistics(all_KN), loss_grad_N)
    else:
        for rows, layer, state in scored_chunks(x_ND, w_VD, bias_V, targets_N, settings):
            sums.add(rows, layer, state, RowStatistics(all_KN[:, rows]), loss_grad_N[rows])
    if sums.dx_ND is not None:
        settings.sum(sums.dx_ND)
    new = only_new(sums.all_or_empty(), wanted, main_grad_VD, bias_main_grad_V)
    return tuple(x_ND.new_empty(0) if grad is None else grad.to(x_ND.dtype) for grad in new)  # type: ignore[return-value]


@vocab_grads.register_fake  # type: ignore[untyped-decorator]
def _grads_fake(
    loss_grad: Any,
    x: Tensor,
    weight: Tensor,
    bias: Any,
    targets: Any,
    exp: Any,
    own: Any,
    all_shards: Any,
    main_grad: Tensor | None,
    bias_main_grad: Tensor | None,
    keep: bool,
    wanted: Sequence[bool],
    *_: Any,
) -> Grads:
    grads = torch.empty_like(x), torch.empty_like(weight), x.new_empty(len(weight))
    new = only_new(grads, wanted, main_grad, bias_main_grad)
    return tuple(x.new_empty(0) if grad is None else grad for grad in new)  # type: ignore[return-value]


@operator(
    "vocab_statistics",
    f"(Tensor x, Tensor weight, Tensor? bias, Tensor targets, bool entropy, {SCHEMA}) -> Tensor",
)
def vocab_statistics(
    x_ND: Tensor, w_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor, entropy: bool, *arguments: Any
) -> Tensor:
    """Forward only: the statistics of all shards [K, N]."""
    settings = LayerSettings.of(*arguments)
    layer = settings.layer(w_VD, bias_V)
    own = layer.statistics(x_ND, targets_N, entropy=entropy)
    return settings.gather(layer, own, weighted_extra=entropy).packed_KN


@vocab_statistics.register_fake  # type: ignore[untyped-decorator]
def _statistics_fake(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(4, len(x), dtype=accumulation_dtype(x.dtype))
