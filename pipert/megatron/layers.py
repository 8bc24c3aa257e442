"""What the backward split must know of Megatron's layers: the rules of their autograd functions.

Column- and row-parallel linear layers are one function, which computes all of its gradients together; here its backward
learns to leave the weight's and the bias's to W. Grouped linear layers (MoE experts) leave out what autograd does not
need by themselves. The other layers are made of these, and of torch's own functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipert.stages.boundaries import RULES, Bound, Rule
from pipert.stages.graph import GradientEdge, nodes_below

_LEFT_OUT = "pipert_left_out"
_INPUT, _WEIGHT, _BIAS = 0, 1, 2  # arguments of the linear function, and so its edges

_WHOLE = {
    "CheckpointFunctionBackward": "recomputed layers (a reentrant checkpoint) run their whole backward by themselves",
    "CheckpointWithoutOutputFunctionBackward": "recomputed modules (recompute_modules) run their whole backward "
    "by themselves",
}
"""Autograd functions that only run in a full backward, and why."""


def register() -> None:
    """Add the rules of Megatron's layers to those of the backward split, once."""
    from megatron.core.tensor_parallel.layers import LinearWithGradAccumulationAndAsyncCommunication as Linear

    name = f"{Linear.__name__}Backward"
    if name in RULES:
        return
    Linear.backward = staticmethod(_leaving_out(Linear.backward))
    RULES[name] = Rule((_INPUT, _WEIGHT), _bind_linear, _leave_out_of_linear)
    RULES["GroupedGemmBackward"] = Rule((0, 1), _bind_grouped, _leave_out_of_grouped)


def fallback_reason(roots: Sequence[GradientEdge]) -> str | None:
    """Say why the graph below ``roots`` cannot be split; None if it can."""
    for node in nodes_below([root.node for root in roots]):
        reason = _WHOLE.get(type(node).__name__)
        if reason is not None:
            return reason
    return None


class DelayedWgrads:
    """The weight gradients that layers put off by themselves (Transformer Engine's ``delay_wgrad_compute``).

    Each such layer keeps those of its backwards in a queue; a run takes the earliest of each.
    """

    def __init__(self, module: nn.Module) -> None:
        """Find the layers of ``module``, in the order in which a backward reaches them."""
        layers: list[Any] = [layer for layer in module.modules() if hasattr(layer, "need_backward_dw")]
        self._layers = [layer for layer in reversed(layers) if layer.need_backward_dw()]

    def run(self) -> None:
        """Compute those of the earliest backward."""
        for layer in self._layers:
            layer.backward_dw()


# Linear layers


def _leaving_out(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a backward of the linear function that leaves out what :func:`_leave_out_of_linear` has noted."""

    def input_grad(ctx: Any, grad_output: Tensor) -> Any:
        if not hasattr(ctx, _LEFT_OUT):
            return backward(ctx, grad_output)
        from megatron.core.tensor_parallel.layers import dist_reduce_scatter_func

        inputs, weight = ctx.saved_tensors
        grad_input = grad_output.matmul(weight)
        if ctx.allreduce_dgrad:
            dist.all_reduce(grad_input, group=ctx.tp_group)
        if ctx.sequence_parallel:
            part = torch.empty_like(inputs)
            dist_reduce_scatter_func(part, grad_input, group=ctx.tp_group)
            grad_input = part
        return (grad_input, *[None] * 8)

    return input_grad


def _leave_out_of_linear(node: Any, edges: tuple[int, ...]) -> None:
    setattr(node, _LEFT_OUT, edges)


def _bind_linear(node: Any, edge: int) -> Bound | None:
    inputs, weight = node.saved_tensors
    if (
        edge == _INPUT
        or node.grad_output_buffer is not None  # Megatron puts this layer off by itself
        or getattr(node, "_fwd_used_autocast", False)  # its backward runs under autocast
        or hasattr(weight, "__fsdp_param__")
    ):
        return None
    if edge == _BIAS:
        return _bias_grad, None
    formula = _fused_weight_grad if node.gradient_accumulation_fusion else _weight_grad
    return partial(formula, _Linear(node, weight)), inputs.detach()


class _Linear:
    """What a weight's gradient needs beside input and output gradient."""

    __slots__ = ("group", "main_grad", "sequence_parallel", "weight")

    def __init__(self, node: Any, weight: Tensor) -> None:
        self.weight = weight
        self.main_grad = node.main_grad
        self.sequence_parallel = node.sequence_parallel
        self.group = node.tp_group


def _operands(linear: _Linear, inputs: Tensor, grad_output: Tensor) -> tuple[Tensor, Tensor]:
    """Return output gradient ``[N, out]`` and input ``[N, in]``; the input gathered where its sequence is split."""
    from megatron.core.tensor_parallel.layers import dist_all_gather_func, prepare_input_tensors_for_wgrad_compute

    if linear.sequence_parallel:
        gathered = inputs.new_empty((inputs.shape[0] * linear.group.size(), *inputs.shape[1:]))
        dist_all_gather_func(gathered, inputs, group=linear.group)
        inputs = gathered
    grad, total = prepare_input_tensors_for_wgrad_compute(grad_output, inputs)
    return grad, total


def _weight_grad(linear: _Linear, inputs: Tensor, grad_output: Tensor) -> Tensor:
    grad, total = _operands(linear, inputs, grad_output)
    return grad.t().matmul(total)


def _fused_weight_grad(linear: _Linear, inputs: Tensor, grad_output: Tensor) -> Tensor:
    """Add to ``main_grad`` in the kernel of the product; return what lets the parameter's hooks run.

    Data-parallel hooks read ``grad_added_to_main_grad`` and drop the gradient that arrives, whose values mean nothing
    unless the parameter wants zeros (``zero_out_wgrad``).
    """
    import fused_weight_gradient_mlp_cuda as fused

    weight: Any = linear.weight
    weight.main_grad = linear.main_grad
    grad, total = _operands(linear, inputs, grad_output)
    is_wide = weight.main_grad.dtype == torch.float32
    accumulate = fused.wgrad_gemm_accum_fp32 if is_wide else fused.wgrad_gemm_accum_fp16
    accumulate(total, grad, weight.main_grad)
    if not hasattr(weight, "grad_added_to_main_grad"):
        return None  # type: ignore[return-value]  # nothing arrives, as in the original
    weight.grad_added_to_main_grad = True
    make = torch.zeros if getattr(weight, "zero_out_wgrad", False) else torch.empty
    return make(weight.main_grad.shape, dtype=inputs.dtype, device=inputs.device)


def _bias_grad(saved: None, grad_output: Tensor) -> Tensor:
    grad = grad_output.reshape(-1, grad_output.shape[-1])
    return grad.sum(dim=0)


# Grouped linear layers


def _leave_out_of_grouped(node: Any, edges: tuple[int, ...]) -> None:
    node.needs_input_grad = tuple(needed and edge not in edges for edge, needed in enumerate(node.needs_input_grad))


def _bind_grouped(node: Any, edge: int) -> Bound | None:
    if edge != 1:
        return None
    inputs, _, batch_sizes = node.saved_tensors
    return partial(_grouped_weight_grad, batch_sizes, node.trans_b), inputs.detach()


def _grouped_weight_grad(batch_sizes: Tensor, is_transposed: bool, inputs: Tensor, grad_output: Tensor) -> Tensor:
    from grouped_gemm import backend

    grad = grad_output.contiguous()
    left, right = (grad, inputs) if is_transposed else (inputs, grad)
    result: Tensor = backend.gmm(left, right, batch_sizes, trans_a=True, trans_b=False)
    return result
