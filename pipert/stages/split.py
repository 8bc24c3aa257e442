"""The backward of any autograd graph in two parts: input gradients now, weight gradients later.

The graph below a stage's outputs has two sides. The *parameter side* holds the parameters and what is computed from
them alone (a transpose, a cast, a mask). The rest carries activations. Where an activation node leads to the parameter
side, and its type has a rule in :mod:`pipert.stages.boundaries`, it is a *boundary*.

``I`` runs the graph once, for the stage's inputs alone, so autograd itself leaves out every weight gradient; the
gradients that reach the boundaries are kept on the way, with the saved tensors that the rules need. ``W`` applies the
rules and sends their results down the parameter side, in one more run. Parameters behind nodes without a rule get
their gradient within ``I`` (their node computes it in the same kernel, or cheaply), and ``W`` only adds it. A
``torch.autograd.Function`` computes all of its gradients, whatever autograd wants; its rule therefore also makes a node
that ``I`` is about to run leave some out.

Bit for bit the same as one full backward. The delicate case is a parameter that is used several times: autograd sums
its contributions in descending order of their nodes' sequence numbers. In ``W``, gradients handed in at a node come
before those that arrive through other nodes; where that would change the order of three or more, the parameter's
whole gradient is left to ``I``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pipert.stages.boundaries import ARITHMETIC, FUNCTION_RULES, RULES, Bound, FunctionRule, Rule
from pipert.stages.graph import AccumulateGrad, GradientEdge, PythonNode, accumulate, gradients, nodes_below
from pipert.stages.memory import held_bytes
from pipert.stages.protocol import Grads

_Edge = tuple[Any, int]
"""A node, and which of its inputs."""
_Target = tuple[_Edge, Bound]
"""An edge to the parameter side, and how to compute the gradient along it."""

_Split = tuple[Tensor, "list[_Target]"]
"""The gradient of a boundary's output, and where it is used."""

_DEAD, _ACTIVE, _PARAMETER = 0, 1, 2


class _Boundary:
    """An activation node with a rule, and its edges to the parameter side.

    Attributes:
        node: the node.
        rule: how to split it.
        edges: its edges to the parameter side: index, and where it leads.
        runs: whether I runs it, because something whose gradient I wants lies behind it.
        formulas: what is left to W: where a gradient goes, how it is computed, from which saved tensor.
        seen: once I has run it, the gradients of its outputs.
    """

    __slots__ = ("edges", "formulas", "node", "rule", "runs", "seen")

    def __init__(self, node: Any, rule: Rule | FunctionRule, edges: list[tuple[int, _Edge]], runs: bool) -> None:
        self.node = node
        self.rule = rule
        self.edges = edges
        self.runs = runs
        self.formulas: list[_Target] = []
        self.seen: list[Sequence[Tensor | None]] = []


class WeightGrads:
    """What is left to W.

    Attributes:
        split: per boundary, the gradient of its output, and its edges to the parameter side with their formulas; the
            last of the forward first.
        ready: parameters whose gradients are known, and these.
    """

    __slots__ = ("ready", "split")

    def __init__(self) -> None:
        self.split: list[_Split] = []
        self.ready: list[tuple[GradientEdge, Tensor]] = []

    def held_bytes(self, without: Iterable[Tensor]) -> int:
        """Return the memory that it keeps alive (see :func:`pipert.stages.memory.held_bytes`)."""
        tensors = [grad for _, grad in self.ready]
        nodes = []
        for output_grad, targets in self.split:
            tensors += [output_grad, *(saved for _, (_, saved) in targets if saved is not None)]
            nodes += [edge[0] for edge, _ in targets]
        return held_bytes(nodes, tensors, without)

    def own(self, owned: Callable[[Grads], Grads]) -> None:
        """Put ``owned(tensors)`` in the place of all tensors, so as to outlive the memory that some lie in."""
        grads = owned(tuple([grad for _, grad in self.ready]))
        self.ready = [(edge, grad) for (edge, _), grad in zip(self.ready, grads, strict=True) if grad is not None]
        for index, (output_grad, targets) in enumerate(self.split):
            (grad,), saved = owned((output_grad,)), owned(tuple([tensor for _, (_, tensor) in targets]))
            assert grad is not None
            again = zip(targets, saved, strict=True)
            self.split[index] = grad, [(edge, (formula, tensor)) for (edge, (formula, _)), tensor in again]

    def run(self) -> None:
        """Add to every parameter's ``grad`` the sum of its contributions, once, and run its hooks."""
        edges = [edge for edge, _ in self.ready]
        grads = [grad for _, grad in self.ready]
        _compute(self.split, edges, grads)
        accumulate(edges, grads)

    def run_in_pieces(self) -> None:
        """Do as :meth:`run`, one parameter (with those that share a node with it) after the other, and keep nothing.

        Where a parameter's hook takes its gradient away, no more than one piece's gradients exist at a time. Costs one
        run of autograd per piece.
        """
        accumulate([edge for edge, _ in self.ready], [grad for _, grad in self.ready])
        self.ready = []
        pieces = _pieces(self.split)
        self.split = []
        while pieces:
            edges: list[GradientEdge] = []
            grads: list[Tensor] = []
            _compute(pieces.pop(), edges, grads)
            accumulate(edges, grads)


def _compute(split: Iterable[_Split], edges: list[GradientEdge], grads: list[Tensor]) -> None:
    """Apply the formulas of ``split``; append the gradients, and where they go."""
    with torch.no_grad():  # as a backward has it: a Python function may hand on a gradient that requires one
        for output_grad, targets in split:
            for edge, (formula, saved) in targets:
                grad = formula(saved, output_grad)
                if grad is not None:
                    edges.append(GradientEdge(*edge))
                    grads.append(grad)


def _pieces(split: Sequence[_Split]) -> list[list[_Split]]:
    """Return ``split`` in parts that lead to no common node; the first of them last."""
    united = _Pieces()
    for index, (_, targets) in enumerate(split):
        for node in nodes_below([edge[0] for edge, _ in targets]):
            united.join(index, node)
    pieces: dict[Any, list[_Split]] = {}
    for index, part in enumerate(split):
        pieces.setdefault(united.of(index), []).append(part)
    return list(pieces.values())[::-1]


def input_grads(
    roots: Sequence[GradientEdge], root_grads: Sequence[Tensor], inputs: Sequence[Tensor], may_have_hooks: bool = True
) -> tuple[Sequence[Tensor | None], WeightGrads]:
    """Run the I part of the backward from ``roots``, and free the graph.

    Args:
        roots: where ``root_grads`` enter the graph.
        root_grads: one gradient per root.
        inputs: the leaves whose gradients are wanted.
        may_have_hooks: False where certainly no hook was put on a tensor or node of the graph; a little faster.

    Returns:
        The gradient of each input, None where none arrives; and the W part.
    """
    boundaries, leaves = _divide(roots, inputs)
    wanted: list[Tensor | GradientEdge] = [*inputs, *leaves]
    captured = []
    for boundary in boundaries:
        if boundary.runs and isinstance(boundary.rule, FunctionRule):
            boundary.rule.leave_out(boundary.node)
        if boundary.runs and may_have_hooks:
            # Autograd captures a gradient before the hooks on its tensor, where it goes on to run the node. A last hook
            # sees what the node sees.
            boundary.node.register_prehook(boundary.seen.append)
        else:
            captured.append(boundary)
            wanted.append(GradientEdge(boundary.node, 0))

    if leaves:
        with _without_hooks(leaves):
            arrived = gradients(roots, root_grads, wanted)
    else:
        arrived = gradients(roots, root_grads, wanted)

    rest = WeightGrads()
    if leaves:
        grads = arrived[len(inputs) : len(inputs) + len(leaves)]
        rest.ready = [(leaf, grad) for leaf, grad in zip(leaves, grads, strict=True) if grad is not None]
    if captured:
        for boundary, grad in zip(captured, arrived[-len(captured) :], strict=True):
            boundary.seen.append((grad,))
    for boundary in boundaries:
        output_grad = boundary.seen[0][0] if boundary.seen else None
        if output_grad is not None:
            rest.split.append((output_grad, boundary.formulas))
    return arrived[: len(inputs)], rest


def _divide(roots: Sequence[GradientEdge], inputs: Sequence[Tensor]) -> tuple[list[_Boundary], list[GradientEdge]]:
    """Return the boundaries with work for W, and the parameters whose gradients I computes."""
    boundaries, unsplit, kinds, is_shared = _walk([root.node for root in roots], {id(leaf) for leaf in inputs})
    for boundary in boundaries:
        for index, target in boundary.edges:
            bound = boundary.rule.bind(boundary.node, index)
            if bound is None:
                boundary.runs = True
                unsplit.append(target[0])
            else:
                boundary.formulas.append((target, bound))
    if is_shared:
        _keep_order_of_sums(boundaries, unsplit, kinds)
    else:
        boundaries.reverse()
    boundaries = [boundary for boundary in boundaries if boundary.formulas]
    return boundaries, _leaves(unsplit, kinds) if unsplit else []


def _walk(roots: list[Any], input_ids: set[int]) -> tuple[list[_Boundary], list[Any], dict[Any, int], bool]:
    """Classify every node below ``roots``, each after the nodes that it leads to.

    Returns:
        The boundaries; the nodes of the parameter side that something else than a boundary leads to; the kind of each
        node; whether anything on the parameter side is reached on two ways.
    """
    kinds: dict[Any, int] = {}
    boundaries: list[_Boundary] = []
    unsplit: list[Any] = []
    reached: set[Any] = set()
    is_shared = False
    stack = list(roots)
    while stack:
        node = stack[-1]
        if node in kinds:
            stack.pop()
            continue
        if type(node) is AccumulateGrad:  # a root
            kinds[node] = _ACTIVE if id(node.variable) in input_ids else _PARAMETER
            continue
        nexts = node.next_functions
        depth = len(stack)
        for child, _ in nexts:
            if child is not None and child not in kinds:
                if type(child) is AccumulateGrad:
                    kinds[child] = _ACTIVE if id(child.variable) in input_ids else _PARAMETER
                else:
                    stack.append(child)
        if len(stack) > depth:
            continue
        stack.pop()

        leads_on = False
        edges: list[int] = []
        for index, (child, _) in enumerate(nexts):
            kind = _DEAD if child is None else kinds[child]
            if kind == _ACTIVE:
                leads_on = True
            elif kind == _PARAMETER:
                edges.append(index)
                is_shared = is_shared or child in reached
                reached.add(child)
        if not edges:
            kinds[node] = _ACTIVE if leads_on else _DEAD
            continue
        rule = RULES.get(type(node).__name__)
        if not leads_on and _is_parameter_side(node, rule, edges, len(nexts)):
            kinds[node] = _PARAMETER
            continue
        kinds[node] = _ACTIVE
        split_by = rule or _function_rule(node, edges, kinds)
        if split_by is None:
            unsplit += [nexts[index][0] for index in edges]
        else:
            boundaries.append(_Boundary(node, split_by, [(index, nexts[index]) for index in edges], leads_on))
    for root in roots:
        if kinds[root] == _PARAMETER:
            is_shared = is_shared or root in reached
            unsplit.append(root)
    return boundaries, unsplit, kinds, is_shared


def _function_rule(node: Any, edges: list[int], kinds: dict[Any, int]) -> FunctionRule | None:
    """Return the rule for a Python function whose ``edges`` lead to parameters; None if it cannot be split by one."""
    rule = FUNCTION_RULES.get(type(node))
    if rule is None:
        return None
    nexts = node.next_functions
    left_out = {index for index in rule.weights if index < len(nexts)}
    is_wanted = any(kinds.get(nexts[index][0]) == _ACTIVE for index in left_out)
    return rule if left_out.issuperset(edges) and not is_wanted else None


def _is_parameter_side(node: Any, rule: Rule | None, edges: list[int], num_edges: int) -> bool:
    """Whether a node of which ``edges`` lead to the parameter side, and none to activations, computes from it alone.

    A constant operand (no edge) counts as data, as a batch that needs no gradient is one.
    """
    if isinstance(node, PythonNode):  # Python's node objects do not keep their graph alive until W
        return False
    if rule is not None:
        return bool(rule.operands) and all(operand in edges for operand in rule.operands)
    return len(edges) == num_edges or type(node).__name__ in ARITHMETIC


def _keep_order_of_sums(boundaries: list[_Boundary], unsplit: list[Any], kinds: dict[Any, int]) -> None:
    """See to it that every sum on the parameter side has autograd's order, whatever is shared.

    Connected pieces of the parameter side are left to I as a whole where they are also reached from something else
    than a boundary, or where a sum of three or more gradients mixes those handed in with those that pass through
    another node. Everywhere else, gradients are handed in in descending order of sequence numbers.
    """
    pieces = _Pieces()
    passing: Counter[tuple[Any, int]] = Counter()
    handed_in: Counter[tuple[Any, int]] = Counter()
    for node, kind in kinds.items():
        if kind == _PARAMETER:
            for child, input_nr in node.next_functions:
                if child is not None and kinds[child] == _PARAMETER:
                    pieces.join(node, child)
                    passing[child, input_nr] += 1
    for boundary in boundaries:
        handed_in.update(edge for edge, _ in boundary.formulas)
        if isinstance(boundary.rule, FunctionRule):  # it leaves out all or nothing
            for edge, _ in boundary.formulas[1:]:
                pieces.join(boundary.formulas[0][0][0], edge[0])

    to_input_grad = {pieces.of(node) for node in unsplit}
    for place, count in handed_in.items():
        if passing[place] and passing[place] + count > 2:
            to_input_grad.add(pieces.of(place[0]))
    for boundary in boundaries:
        for part in list(boundary.formulas):
            if pieces.of(part[0][0]) in to_input_grad:
                boundary.formulas.remove(part)
                boundary.runs = True
                unsplit.append(part[0][0])
    boundaries.sort(key=lambda boundary: -boundary.node._sequence_nr())


class _Pieces:
    """Which nodes hang together (union-find)."""

    def __init__(self) -> None:
        self._parent: dict[Any, Any] = {}

    def of(self, node: Any) -> Any:
        while (parent := self._parent.get(node, node)) is not node:
            node = parent
        return node

    def join(self, a: Any, b: Any) -> None:
        self._parent[self.of(a)] = self.of(b)


def _leaves(nodes: Iterable[Any], kinds: dict[Any, int]) -> list[GradientEdge]:
    """Return the parameters below ``nodes`` of the parameter side, each once."""
    found = nodes_below(nodes, lambda child: kinds[child] == _PARAMETER)
    return [GradientEdge(node, 0) for node in found if type(node) is AccumulateGrad]


@contextmanager
def _without_hooks(leaves: Iterable[GradientEdge]) -> Iterator[None]:
    """Keep the hooks on parameters silent; they run in W, where the gradients are added."""
    variables = [leaf.node.variable for leaf in leaves]  # type: ignore[attr-defined]
    hooked = [variable._backward_hooks for variable in variables if variable._backward_hooks]
    hooks = [dict(hooks) for hooks in hooked]
    for registered in hooked:
        registered.clear()
    try:
        yield
    finally:
        for registered, silenced in zip(hooked, hooks, strict=True):
            registered.update(silenced)
