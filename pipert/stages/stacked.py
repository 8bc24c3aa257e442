"""The weight gradients of several microbatches in one matrix product per weight.

The second half of 2BP (Rae, Lee and Richings, 2024: arXiv 2405.18047): the microbatches' saved inputs and output
gradients are laid one after the other, so that the sum over microbatches happens inside of the product. The order of
that sum is the product's own, so the bits are not those of a sum microbatch by microbatch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pipert.stages.boundaries import STACKED, Formula
from pipert.stages.graph import AccumulateGrad, GradientEdge, accumulate
from pipert.stages.split import WeightGrads

_Piece = tuple[GradientEdge, "Tensor | None", Tensor]
"""Where a gradient goes; what it is computed from: a saved tensor, and the gradient of an output."""
_Key = tuple[Any, ...]


@torch.no_grad()
def run_stacked(parts: Sequence[WeightGrads]) -> None:
    """Do what ``run`` of each of ``parts`` does, with one product where several lead to the same parameter.

    Hooks on parameters run once, with the sum. What is no product (embeddings), or leads to a parameter on another way
    than directly or through a transpose, is computed one by one.
    """
    edges: list[GradientEdge] = []
    grads: list[Tensor] = []
    stacks: dict[_Key, list[_Piece]] = {}
    for part in parts:
        edges += [edge for edge, _ in part.ready]
        grads += [grad for _, grad in part.ready]
        for output_grad, targets in part.split:
            for edge, (formula, saved) in targets:
                key = _key(edge, formula, saved, output_grad)
                if key is None:
                    grad = formula(saved, output_grad)
                    if grad is not None:
                        edges.append(GradientEdge(*edge))
                        grads.append(grad)
                else:
                    stacks.setdefault((formula, *key), []).append((GradientEdge(*edge), saved, output_grad))
    for (formula, *_), pieces in stacks.items():
        edges.append(pieces[0][0])
        grads.append(_product(formula, pieces))
    accumulate(edges, grads)


def _key(edge: tuple[Any, int], formula: Formula, saved: Tensor | None, output_grad: Tensor) -> _Key | None:
    """Return what pieces must agree in to be stacked; None where they cannot be."""
    dim = STACKED.get(formula)
    node, path = edge[0], ""
    if type(node).__name__ == "TBackward0":
        node, path = node.next_functions[0][0], "transposed"
    if dim is None or type(node) is not AccumulateGrad:
        return None
    if saved is None and (path or node.variable.dim() != 1 or output_grad.dim() != 2):  # not a bias
        return None
    operands = [output_grad] if saved is None else [output_grad, saved]
    shapes = [(operand.dtype, *operand.shape[:dim], *operand.shape[dim + 1 :]) for operand in operands]
    return id(node.variable), path, *shapes


def _product(formula: Formula, pieces: Sequence[_Piece]) -> Tensor:
    dim = STACKED[formula]
    saved = [tensor for _, tensor, _ in pieces if tensor is not None]
    product = formula(torch.cat(saved, dim) if saved else None, torch.cat([grad for _, _, grad in pieces], dim))
    assert product is not None  # formulas that can be stacked have one
    return product
