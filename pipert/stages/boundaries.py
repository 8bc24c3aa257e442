"""The table of autograd nodes whose parameter gradients can be computed apart from their input gradients.

A node stands here when its parameter gradient is a kernel of its own, so that delaying it moves real work. A
normalisation does not: one kernel computes all of its gradients, and running it twice would cost more than it moves.

Each rule replays the formula of torch's ``derivatives.yaml`` with the same kernels in the same layout, so the bits are
those of a full backward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pipert.stages.graph import is_hooked

Formula = Callable[[Any, Tensor], "Tensor | None"]
"""From a saved tensor (or None), and the gradient of a node's output, to the gradient along one of its edges; None
where it has gone its own way, or there is none."""
Bound = tuple[Formula, "Tensor | None"]
"""A formula, and the saved tensor that it needs."""


@dataclass(frozen=True, slots=True)
class Rule:
    """How to split one type of node.

    Attributes:
        operands: the edges of the tensors that it multiplies: where all of them lead to parameters, the node computes
            a parameter from parameters, and there is nothing to split.
        bind: takes a node and one of its edges, and returns the formula of that edge; None where the formula is not
            known to give autograd's bits, or the saved tensor would have to be recomputed for it.
    """

    operands: tuple[int, ...]
    bind: Callable[[Any, int], Bound | None]


@dataclass(frozen=True, slots=True)
class FunctionRule:
    """How to split a ``torch.autograd.Function``, whose backward computes all gradients whatever autograd wants.

    Attributes:
        weights: the edges whose gradients W computes, all of them or none. A node counts its edges by the tensors among
            the function's arguments. Nodes that have parameters elsewhere, or activations here, are not split.
        bind: as :attr:`Rule.bind`; it returns None for every edge of a node or for none.
        leave_out: is called with a node that I is about to run, which must compute no gradient of ``weights``.
    """

    weights: tuple[int, ...]
    bind: Callable[[Any, int], Bound | None]
    leave_out: Callable[[Any], None]


def saved_by_function(node: Any) -> tuple[Tensor | None, ...] | None:
    """Return what the node of a Python function saved; None where a saved-tensor hook holds it, as in a checkpoint."""
    for index, saved in enumerate(node._raw_saved_tensors):
        if is_hooked(saved, node, f"_saved_tensors{index}"):
            return None
    tensors: tuple[Tensor | None, ...] = node.saved_tensors
    return tensors


def _addmm(node: Any, edge: int) -> Bound | None:
    """``beta * self + alpha * mat1 @ mat2``, edges (self, mat1, mat2)."""
    if node._saved_alpha != 1 or node._saved_beta != 1:
        return None
    if edge == 0:
        return _whole, None
    if edge == 1:
        is_column_major = _is_column_major(node._saved_mat1_sym_sizes, node._saved_mat1_sym_strides)
        return _bind(_left_transposed if is_column_major else _left, node, "_saved_mat2")
    is_column_major = _is_column_major(node._saved_mat2_sym_sizes, node._saved_mat2_sym_strides)
    return _bind(_right_transposed if is_column_major else _right, node, "_saved_mat1")


def _mm(node: Any, edge: int) -> Bound | None:
    """``self @ mat2``, edges (self, mat2)."""
    if edge == 0:
        is_column_major = _is_column_major(node._saved_self_sym_sizes, node._saved_self_sym_strides)
        return _bind(_left_transposed if is_column_major else _left, node, "_saved_mat2")
    is_column_major = _is_column_major(node._saved_mat2_sym_sizes, node._saved_mat2_sym_strides)
    return _bind(_right_transposed if is_column_major else _right, node, "_saved_self")


def _bmm(node: Any, edge: int) -> Bound | None:
    """``self @ mat2`` over a batch, edges (self, mat2)."""
    return _bind(_batch_left, node, "_saved_mat2") if edge == 0 else _bind(_batch_right, node, "_saved_self")


def _embedding(node: Any, edge: int) -> Bound | None:
    """``weight[indices]``, edge (weight)."""
    padding_idx = node._saved_padding_idx
    if padding_idx >= 1 << 63:  # -1, "none", is shown without its sign
        padding_idx -= 1 << 64
    options = (node._saved_weight_sym_argsize_0, padding_idx, node._saved_scale_grad_by_freq, node._saved_sparse)
    return _bind(partial(_rows, options), node, "_saved_indices")


def _bind(formula: Formula, node: Any, saved: str) -> Bound | None:
    """Join ``formula`` with the tensor that ``node`` holds in its attribute ``saved``, where that is at hand."""
    if is_hooked(getattr(node, "_raw" + saved), node, saved):
        return None
    tensor: Tensor = getattr(node, saved)
    if tensor.layout is not torch.strided or tensor.is_complex():
        return None
    return formula, tensor.detach()  # detached, it does not keep the graph


def _is_column_major(sizes: Any, strides: Any) -> bool:
    return bool(strides[0] == 1 and strides[1] == sizes[0])


def _whole(saved: None, grad: Tensor) -> Tensor:
    return grad  # the engine sums it to the shape of what it goes to


def _left(right: Tensor, grad: Tensor) -> Tensor:
    return torch.mm(grad, right.t())


def _left_transposed(right: Tensor, grad: Tensor) -> Tensor:
    return torch.mm(right, grad.t()).t()


def _right(left: Tensor, grad: Tensor) -> Tensor:
    return torch.mm(left.t(), grad)


def _right_transposed(left: Tensor, grad: Tensor) -> Tensor:
    return torch.mm(grad.t(), left).t()


def _batch_left(right: Tensor, grad: Tensor) -> Tensor:
    return torch.bmm(grad, right.transpose(1, 2))


def _batch_right(left: Tensor, grad: Tensor) -> Tensor:
    return torch.bmm(left.transpose(1, 2), grad)


def _rows(options: tuple[int, int, bool, bool], indices: Tensor, grad: Tensor) -> Tensor:
    result: Tensor = torch.ops.aten.embedding_backward.default(grad, indices, *options)
    return result


RULES: dict[str, Rule] = {
    "AddmmBackward0": Rule((1, 2), _addmm),
    "MmBackward0": Rule((0, 1), _mm),
    "BmmBackward0": Rule((0, 1), _bmm),
    "EmbeddingBackward0": Rule((), _embedding),
}
"""By the name of the node's type."""

FUNCTION_RULES: dict[type, FunctionRule] = {}
"""By the type of the node; :func:`add_function_rule` adds to them."""


def add_function_rule(function: type[torch.autograd.Function], rule: FunctionRule) -> None:
    """Split ``function`` by ``rule`` from now on."""
    FUNCTION_RULES[function._backward_cls] = rule


ARITHMETIC = frozenset(f"{name}Backward{i}" for name in ("Add", "Sub", "Mul", "Div") for i in (0, 1))
"""Nodes whose other operand may be a constant where they compute a parameter from parameters (``weight * mask``)."""

STACKED: dict[Any, int] = {
    _whole: 0,
    _left: 1,
    _left_transposed: 1,
    _right: 0,
    _right_transposed: 0,
    _batch_left: 2,
    _batch_right: 1,
}
"""The formulas that sum over a dimension of both of their operands: microbatches laid one after the other along it give
the sum of their gradients in one product. (:func:`_whole` itself does not; the sum to the shape of a bias does.)"""
