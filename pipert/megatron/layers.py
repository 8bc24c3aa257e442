"""What the backward split must know of Megatron-core's layers: the rules of their autograd functions.

Column- and row-parallel linear layers, attention's projections, MLPs and sequential experts are all one function, which
computes its gradients together; so does the router's. Grouped experts use another package's, the vocabulary-parallel
embedding torch's. Each rule replays the formula of the function with the same kernels, so the bits are those of a full
backward. Norms, biases in fused kernels and what else has no rule get their gradients with the input gradients.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipert.stages.boundaries import RULES, Bound, FunctionRule, Rule, add_function_rule
from pipert.stages.boundaries import saved_by_function as _saved
from pipert.stages.graph import AccumulateGrad, GradientEdge, PythonNode, is_hooked, nodes_below

_INPUT, _WEIGHT, _BIAS = 0, 1, 2  # the edges of a linear function

_WHOLE = {
    "CheckpointFunctionBackward": "a reentrant checkpoint (recompute_granularity) runs in a full backward alone",
    "_CheckpointFunctionBackward": "a reentrant checkpoint (recompute_granularity) runs in a full backward alone",
    "CheckpointWithoutOutputFunctionBackward": "recompute_modules recomputes in a full backward alone",
    "_CudagraphReplayNodeBackward": "a CUDA graph (cuda_graph_impl) holds the whole backward of its layer",
    "_CudagraphRecordNodeBackward": "a CUDA graph (cuda_graph_impl) holds the whole backward of its layer",
    "RegisterPostBackwardFunctionBackward": "fully sharded parameters are let go at the end of the input gradients",
    "RegisterFSDPBackwardFunctionBackward": "fully sharded parameters are let go at the end of the input gradients",
}
"""Autograd functions that only run in a full backward, by the name of their node, and why."""


def register() -> None:
    """Add the rules to those of the backward split. To do so again changes nothing."""
    from megatron.core.tensor_parallel.layers import LinearWithGradAccumulationAndAsyncCommunication as Linear
    from megatron.core.transformer.moe import grouped_gemm_util
    from megatron.core.transformer.moe.moe_utils import RouterGatingLinearFunction as Router

    add_function_rule(Linear, FunctionRule((_WEIGHT, _BIAS), _bind_linear, partial(_run_as, _LinearInputGrad)))
    add_function_rule(Router, FunctionRule((_WEIGHT, _BIAS), _bind_router, partial(_run_as, _RouterInputGrad)))
    grouped = getattr(grouped_gemm_util.ops, "GroupedGemm", None)
    if grouped is not None:
        add_function_rule(grouped, FunctionRule((_WEIGHT,), partial(_bind_replay, grouped), _need_no_weight))
    RULES["IndexBackward0"] = Rule((), _bind_index)


def fallback_reason(roots: Sequence[GradientEdge]) -> str | None:
    """Say why the graph below ``roots`` cannot be split, and must run its full backward; None if it can.

    Names the autograd function or the option that stands against it.
    """
    stores: Counter[int] = Counter()
    for node in nodes_below([root.node for root in roots]):
        name = type(node).__name__
        if name in _WHOLE:
            return f"{name.removesuffix('Backward')}: {_WHOLE[name]}"
        if type(node) is AccumulateGrad:
            if hasattr(node.variable, "__fsdp_param__"):
                return "Megatron-FSDP holds the parameters, and lets them go at the end of the input gradients"
        elif _is_transformer_engine(node):
            store = getattr(node, "wgrad_store", None)
            if store is not None and store.delay_wgrad_compute():
                stores[id(store)] += 1
                if stores[id(store)] > 1:
                    return f"Transformer Engine's {name.removesuffix('Backward')} runs twice in one microbatch"
            elif any(map(_is_matrix, node.next_functions)):
                return (
                    f"Transformer Engine's {name.removesuffix('Backward')} computes all of its gradients together, "
                    "unless delay_wgrad_compute is set"
                )
    return None


def early_matrices(module: nn.Module, early: Iterable[Tensor]) -> list[str]:
    """Name the matrices of ``module`` among the parameters ``early``, whose gradients were not left to W.

    Vectors are meant to be among them; matrices that a layer puts off by itself only seem to be.
    """
    ids = {id(parameter) for parameter in early}
    return [
        name
        for name, parameter in module.named_parameters()
        if parameter.dim() > 1 and id(parameter) in ids and not getattr(parameter, "skip_backward_post_hook", False)
    ]


class DelayedWgrads:
    """The weight gradients that layers put off by themselves (Transformer Engine's ``delay_wgrad_compute``).

    Each such layer keeps what it needs for them in a queue, one entry per backward; a run takes the earliest of each,
    after the microbatch's other gradients have been added. Data-parallel hooks that Megatron has given such a layer
    (``register_wgrad_accumulation_and_reduce_hooks``) are called by the layer itself.

    Args:
        module: a model chunk.
    """

    def __init__(self, module: nn.Module) -> None:
        self._layers: list[Any] = [layer for layer in reversed(list(module.modules())) if _delays(layer)]

    def run(self) -> None:
        """Add those of the earliest backward to the parameters' gradients, the last layer's first."""
        for layer in self._layers:
            queue = getattr(layer.wgrad_store, "context", None)
            if queue is not None and queue.empty():  # did not run in this microbatch
                continue
            # The layer puts its gradient in the place of an earlier one, unless a hook has taken that away.
            earlier = [(p, p.grad) for p in layer.parameters(recurse=False) if p.dim() > 1 and p.grad is not None]
            for parameter, _ in earlier:
                parameter.grad = None
            layer.backward_dw()
            for parameter, grad in earlier:
                parameter.grad = grad if parameter.grad is None else grad.add_(parameter.grad)


def _delays(layer: nn.Module) -> bool:
    store = getattr(layer, "wgrad_store", None)
    return store is not None and callable(getattr(layer, "backward_dw", None)) and bool(store.delay_wgrad_compute())


def _is_transformer_engine(node: Any) -> bool:
    function: Any = getattr(node, "_forward_cls", None)
    return isinstance(node, PythonNode) and function.__module__.startswith("transformer_engine.")


def _is_matrix(edge: tuple[Any, int]) -> bool:
    return type(edge[0]) is AccumulateGrad and edge[0].variable.dim() > 1


def _run_as(function: type[torch.autograd.Function], node: Any) -> None:
    """Let the backward of ``node`` be that of ``function``."""
    node._forward_cls = function


# Linear layers


@dataclass(frozen=True, slots=True, eq=False)
class _Linear:
    """What the weight's gradient takes beside input and output gradient (names are the function's own)."""

    weight: Any
    main_grad: Tensor | None
    gradient_accumulation_fusion: bool
    sequence_parallel: bool
    tp_group: Any
    autocast: torch.autocast


class _LinearInputGrad(torch.autograd.Function):
    """The backward of the linear function without weight and bias."""

    @staticmethod
    @torch.amp.custom_bwd(device_type="cuda")  # type: ignore[untyped-decorator]
    def backward(node: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """Return the input's gradient, summed over the tensor-parallel ranks."""
        from megatron.core.tensor_parallel import layers

        inputs, weight = node.saved_tensors
        grad_input = grad_output.matmul(weight)
        if node.allreduce_dgrad:
            dist.all_reduce(grad_input, group=node.tp_group)
        if node.sequence_parallel:
            part = torch.empty(inputs.shape, dtype=inputs.dtype, device=inputs.device)
            layers.dist_reduce_scatter_func(part, grad_input, group=node.tp_group)
            grad_input = part
        return grad_input, *[None] * 8


def _bind_linear(node: Any, edge: int) -> Bound | None:
    saved = _saved(node)
    if saved is None or node.grad_output_buffer is not None:  # defer_embedding_wgrad_compute: put off by Megatron
        return None
    inputs, weight = saved
    assert inputs is not None
    if hasattr(weight, "__fsdp_param__"):
        return None
    linear = _Linear(
        weight if node.gradient_accumulation_fusion else None,
        node.main_grad,
        node.gradient_accumulation_fusion,
        node.sequence_parallel,
        node.tp_group,
        torch.autocast("cuda", dtype=node._dtype, enabled=node._fwd_used_autocast),
    )
    if edge == _BIAS:
        return partial(_bias_grad, linear), None
    return partial(_weight_grad, linear), inputs.detach()


def _weight_grad(linear: _Linear, inputs: Tensor, grad_output: Tensor) -> Tensor | None:
    """Return the weight's gradient; with ``gradient_accumulation_fusion``, what stands for it."""
    from megatron.core.tensor_parallel import layers

    with linear.autocast:
        if linear.sequence_parallel:
            shape = [inputs.shape[0] * linear.tp_group.size(), *inputs.shape[1:]]
            whole = layers.get_global_memory_buffer().get_tensor(shape, inputs.dtype, "mpu")
            layers.dist_all_gather_func(whole, inputs, group=linear.tp_group)
        else:
            whole = inputs
        grad, whole = layers.prepare_input_tensors_for_wgrad_compute(grad_output, whole)
        if linear.gradient_accumulation_fusion:
            return _fused_weight_grad(linear, whole, grad)
        result: Tensor = grad.t().matmul(whole)
        return result


def _fused_weight_grad(linear: _Linear, inputs: Tensor, grad: Tensor) -> Tensor | None:
    """Add to ``main_grad`` within the product's kernel; return what makes the parameter's hooks run.

    Data-parallel hooks look at ``grad_added_to_main_grad`` and drop the gradient that arrives. Its values mean nothing,
    unless the parameter is tied to another layer's and wants zeros (``zero_out_wgrad``).
    """
    from megatron.core.tensor_parallel import layers

    weight = linear.weight
    weight.main_grad = linear.main_grad
    kernels = layers.fused_weight_gradient_mlp_cuda
    if weight.main_grad.dtype == torch.float32:
        kernels.wgrad_gemm_accum_fp32(inputs, grad, weight.main_grad)
    else:
        kernels.wgrad_gemm_accum_fp16(inputs, grad, weight.main_grad)
    if not hasattr(weight, "grad_added_to_main_grad"):
        return None
    weight.grad_added_to_main_grad = True
    wants_zeros = getattr(weight, "zero_out_wgrad", False)
    shape = list(weight.main_grad.shape)
    if layers.HAVE_TE:
        shared: Tensor = layers.get_dummy_wgrad(shape, inputs.dtype, zero=wants_zeros)
        return shared
    return (torch.zeros if wants_zeros else torch.empty)(shape, dtype=inputs.dtype, device=inputs.device)


def _bias_grad(linear: _Linear, saved: None, grad_output: Tensor) -> Tensor:
    with linear.autocast:
        return grad_output.contiguous().view(-1, grad_output.shape[-1]).sum(dim=0)


# The router's linear layer


class _RouterInputGrad(torch.autograd.Function):
    """The backward of the router's function without weight and bias."""

    @staticmethod
    def backward(node: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """Return the input's gradient."""
        from megatron.core.transformer.moe import moe_utils

        inputs, weight, _ = node.saved_tensors
        grad = grad_output.view(-1, grad_output.shape[-1])
        weight = weight.to(node.router_dtype)
        if moe_utils.te_general_gemm is not None and node.router_dtype != torch.float64:
            product = moe_utils.te_general_gemm(weight, grad, node.router_dtype, layout="NN", grad=True)[0]
        else:
            product = torch.mm(grad, weight)
        return product.to(node.input_dtype).view(*inputs.shape), None, None, None


def _bind_router(node: Any, edge: int) -> Bound | None:
    saved = _saved(node)
    if saved is None or saved[0] is None:
        return None
    if edge == _BIAS:
        return partial(_router_bias_grad, node.weight_dtype), None
    return partial(_router_weight_grad, node.router_dtype, node.weight_dtype), saved[0].detach()


def _router_weight_grad(dtype: torch.dtype, weight_dtype: torch.dtype, inputs: Tensor, grad_output: Tensor) -> Tensor:
    from megatron.core.transformer.moe import moe_utils

    inputs = inputs.view(-1, inputs.shape[-1]).to(dtype)
    grad = grad_output.view(-1, grad_output.shape[-1])
    if moe_utils.te_general_gemm is not None and dtype != torch.float64:
        product: Tensor = moe_utils.te_general_gemm(inputs, grad, dtype, layout="NT", grad=True)[0]
    else:
        product = torch.mm(grad.t(), inputs)
    return product.to(weight_dtype)


def _router_bias_grad(weight_dtype: torch.dtype, saved: None, grad_output: Tensor) -> Tensor:
    return grad_output.view(-1, grad_output.shape[-1]).sum(dim=0).to(weight_dtype)


# Grouped linear layers: a function that itself asks for which inputs a gradient is needed


def _need_no_weight(node: Any) -> None:
    needed = node.needs_input_grad
    node.needs_input_grad = (*needed[:_WEIGHT], False, *needed[_WEIGHT + 1 :])


def _bind_replay(function: type[torch.autograd.Function], node: Any, edge: int) -> Bound | None:
    """Run the function's own backward again, for the weight alone."""
    saved = _saved(node)
    if saved is None:
        return None
    inputs, *others = [None if tensor is None else tensor.detach() for tensor in saved]
    needed = tuple([index == edge for index in range(len(node.needs_input_grad))])
    return partial(_replay, function, tuple(others), needed, dict(vars(node))), inputs


def _replay(
    function: type[torch.autograd.Function],
    others: tuple[Tensor | None, ...],
    needed: tuple[bool, ...],
    attributes: dict[str, Any],
    inputs: Tensor,
    grad_output: Tensor,
) -> Tensor:
    context = SimpleNamespace(**attributes, saved_tensors=(inputs, *others), needs_input_grad=needed)
    result: Tensor = function.backward(context, grad_output)[needed.index(True)]
    return result


# The vocabulary-parallel embedding in deterministic mode


def _bind_index(node: Any, edge: int) -> Bound | None:
    """``weight[indices]``."""
    (raw, *more), (indices, *_) = node._raw_saved_indices, node._saved_indices
    if more or indices is None or is_hooked(raw, node, "_saved_indices0"):
        return None
    return partial(_rows, tuple(node._saved_self_sym_sizes)), indices


def _rows(shape: tuple[int, ...], indices: Tensor, grad: Tensor) -> Tensor:
    result: Tensor = torch.ops.aten._index_put_impl_(grad.new_zeros(shape), [indices], grad, True, True)
    return result


__all__ = ["DelayedWgrads", "early_matrices", "fallback_reason", "register"]
