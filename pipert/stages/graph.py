"""The few things that stages ask of torch's autograd graph, and the two ways in which they run it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Variable
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

# torch.autograd.grad and .backward end in this call. Their own checks cost as much as a small backward, they do not
# let a gradient be summed to its edge's shape as a node's result is, and the engine repeats them.
# Arguments: edges, gradients, keep_graph, create_graph, inputs, allow_unreachable, accumulate_grad.
_run = Variable._execution_engine.run_backward

PythonNode: type = torch._C._FunctionBase
"""The node of a ``torch.autograd.Function``."""


def _accumulate_grad_type() -> type:
    leaf = torch.empty(0, requires_grad=True)
    return type(get_gradient_edge(leaf).node)


AccumulateGrad: Any = _accumulate_grad_type()
"""The node at which a leaf's gradient arrives."""


def gradient_edge(tensor: Tensor) -> GradientEdge:
    """Return where the gradient of ``tensor`` enters the graph; it keeps the graph alive, but not the tensor."""
    node = tensor.grad_fn
    if node is None or isinstance(node, PythonNode):
        return get_gradient_edge(tensor)
    return GradientEdge(node, tensor.output_nr)


def nodes_below(roots: Iterable[Any], enters: Callable[[Any], bool] | None = None) -> Iterator[Any]:
    """Give every node that is reached from ``roots``, these included, once; of their children those that ``enters``."""
    seen: set[Any] = set()
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        stack += [child for child, _ in node.next_functions if child is not None and (enters is None or enters(child))]
        yield node


def accumulate(edges: Sequence[GradientEdge], grads: Sequence[Tensor]) -> None:
    """Run the graph from ``edges``, add to the leaves' ``grad``, and free it."""
    if edges:
        _run(tuple(edges), tuple(grads), False, False, (), True, True)


def gradients(
    edges: Sequence[GradientEdge], grads: Sequence[Tensor], wanted: Sequence[Tensor | GradientEdge]
) -> Sequence[Tensor | None]:
    """Run the graph from ``edges`` only as far as ``wanted`` needs, free what ran, return what arrived there."""
    if not edges or not wanted:
        return (None,) * len(wanted)
    arrived: Sequence[Tensor | None] = _run(tuple(edges), tuple(grads), False, False, tuple(wanted), True, False)
    return arrived


def is_hooked(saved: Any, node: Any, name: str) -> bool:
    """Whether a saved tensor (``node._raw_saved_x``) stands under saved-tensor hooks, as in a checkpoint."""
    return saved.unpack_hook is not None


def is_hooked_by_trial(saved: Any, node: Any, name: str) -> bool:
    """Do as :func:`is_hooked` where torch does not show the hooks (before 2.13): it refuses to set them twice.

    Leaves hooks that do nothing, and remembers under ``name`` in the node's metadata that they are its own.
    """
    own: set[str] = node.metadata.setdefault("pipert_own_hooks", set())
    if name not in own:
        try:
            saved.register_hooks(_same, _same)
        except RuntimeError:
            return True
        own.add(name)
    return False


if not hasattr(torch._C._autograd.SavedTensor, "unpack_hook"):
    is_hooked = is_hooked_by_trial


def _same(value: Tensor) -> Tensor:
    return value


def storage_id(tensor: Tensor) -> int:
    """Return what tells apart the memory of tensors that live at the same time."""
    return tensor.untyped_storage().data_ptr()


__all__ = [
    "AccumulateGrad",
    "GradientEdge",
    "Node",
    "PythonNode",
    "accumulate",
    "gradient_edge",
    "gradients",
    "is_hooked",
    "is_hooked_by_trial",
    "nodes_below",
    "storage_id",
]
