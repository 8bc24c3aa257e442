"""A module as a stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pipert.errors import ConfigError
from pipert.numerics import add_to_main_grad, as_tensors
from pipert.stages.graph import GradientEdge, accumulate, gradient_edge, storage_id
from pipert.stages.memory import held_bytes
from pipert.stages.protocol import Grads, Tensors
from pipert.stages.recompute import RngState, checkpoint_submodules, nothing_saved
from pipert.stages.sharded import is_sharded, local, reduce_grad, reshard, unshard
from pipert.stages.split import WeightGrads, input_grads
from pipert.stages.stacked import run_stacked

_Shapes = tuple[Any, ...]


class _Forward:
    """What is kept of a microbatch from its forward to its backward.

    Attributes:
        leaves: per input, the leaf whose gradient is wanted, or None.
        edges: where the gradients of the outputs that need one enter the graph; None where it must be made again.
        inputs: all inputs, and
        rng: the random state before them, where the forward will run again.
        shapes: of the inputs; microbatches that agree in them hold the same amount of memory.
        num_bytes: the memory held.
        num_hooks: how many hooks torch had registered, anywhere, before the forward.
    """

    __slots__ = ("edges", "inputs", "leaves", "num_bytes", "num_hooks", "rng", "shapes")

    def __init__(self, inputs: Tensors, shapes: _Shapes) -> None:
        self.leaves = tuple([x if x.requires_grad else None for x in inputs])
        self.shapes = shapes
        self.num_bytes = 0
        self.num_hooks = RemovableHandle.next_id
        self.edges: list[GradientEdge] | None = None
        self.inputs: Tensors = ()
        self.rng: RngState | None = None


class _Rest:
    """What is kept of a microbatch from its input gradients to its weight gradients."""

    __slots__ = ("foreign", "num_bytes", "weight_grads")

    def __init__(self, weight_grads: WeightGrads, foreign: set[int]) -> None:
        self.weight_grads = weight_grads
        self.foreign = foreign
        self.num_bytes = 0


class Stage:
    """Drives an ``nn.Module`` op by op (see :class:`pipert.stages.StageProtocol`).

    The module takes the stage's inputs as positional arguments and returns a tensor or a tuple of tensors. Gradients
    are added to its parameters' ``grad``, one sum per parameter and op, with the bits of a plain backward whether it
    runs as one op or as two (:mod:`pipert.stages.split` tells how). The ops must run with autograd enabled. A module
    must not change its inputs in place where they need a gradient; torch refuses that. A module under ``fully_shard``
    follows the plan's UNSHARD, RESHARD and REDUCE_GRAD (:mod:`pipert.stages.sharded`); its optimizer is the caller's.

    Args:
        module: the stage's part of the model.
        recompute: True keeps only the inputs and the random state of a forward, and runs it again before the backward:
            in ``recompute``, or else at the start of ``backward`` or ``input_grad``. A sequence of submodule names does
            so for those submodules alone, within the backward. A module that is run twice changes its buffers
            (running statistics) twice.
        main_grad_dtype: add the gradients of each op into ``main_grad`` of the parameter, of this type, and leave
            ``grad`` empty.
        batch_weight_grads: let W ops that follow each other in the plan be computed together, at the last of them, as
            one matrix product per weight (:mod:`pipert.stages.stacked`). Gradients then differ from the plain form's
            by rounding, less than 64 units in the last place of the stage's largest gradient. What the ops need is held
            until the last of them.
        weight_grads_in_pieces: compute W one parameter after the other: for parameters whose hooks take their gradients
            away (data parallelism with main gradients), so that one exists at a time, and not the whole stage's.

    Raises:
        ConfigError: an unknown name in ``recompute``; and, from the ops, a microbatch in the wrong state, or another
            number of gradients than there are outputs that need one.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        recompute: bool | Sequence[str] = False,
        main_grad_dtype: torch.dtype | None = None,
        batch_weight_grads: bool = False,
        weight_grads_in_pieces: bool = False,
    ) -> None:
        if isinstance(recompute, str):
            raise ConfigError(f"recompute is a bool or a sequence of submodule names, not the string {recompute!r}")
        if not isinstance(recompute, bool):
            checkpoint_submodules(module, recompute)
        self.module = module
        self._recomputes = recompute is True
        self._main_grad_dtype = main_grad_dtype
        self._batch_weight_grads = batch_weight_grads
        self._in_pieces = weight_grads_in_pieces
        self._parameters = tuple(module.parameters())
        self._forwards: dict[int, _Forward] = {}
        self._rests: dict[int, _Rest] = {}
        self._put_off: list[_Rest] = []
        self._held_bytes = 0
        self._sizes: dict[tuple[str, _Shapes], int] = {}

    def forward(self, microbatch: int, inputs: Tensors) -> Tensors:
        """Run the forward of ``microbatch`` and keep what its backward needs."""
        if microbatch in self._forwards or microbatch in self._rests:
            raise ConfigError(f"microbatch {microbatch} is still in flight, its forward cannot run again")
        inputs = _leaves(inputs)
        kept = _Forward(inputs, (self.module.training, *[x.shape for x in inputs]))
        if self._recomputes:
            kept.inputs, kept.rng = inputs, RngState(inputs)
            with nothing_saved():
                outputs, _ = self._run(inputs)
            self._hold(kept, "inputs")
        else:
            outputs, kept.edges = self._run(inputs)
            self._hold(kept, "graph")
        self._forwards[microbatch] = kept
        return outputs

    def backward(self, microbatch: int, grads: Grads) -> Grads:
        """Run the full backward: return the inputs' gradients, add the parameters' to what they have."""
        kept = self._take(microbatch)
        roots, root_grads = _paired(kept, grads)
        fresh = self._without_grad()
        accumulate(roots, root_grads)
        result = tuple([None if leaf is None else leaf.grad for leaf in kept.leaves])
        for leaf in kept.leaves:
            if leaf is not None:
                leaf.grad = None
        self._finish(fresh, _storages((*kept.leaves, *grads, *result)) if fresh else set())
        return result

    def input_grad(self, microbatch: int, grads: Grads) -> Grads:
        """Return the inputs' gradients; keep what ``weight_grad`` needs, drop the rest."""
        kept = self._take(microbatch)
        roots, root_grads = _paired(kept, grads)
        wanted = [leaf for leaf in kept.leaves if leaf is not None]
        arrived, weight_grads = input_grads(roots, root_grads, wanted, RemovableHandle.next_id != kept.num_hooks)
        result = tuple(arrived)
        if len(wanted) < len(kept.leaves):
            remaining = iter(arrived)
            result = tuple([None if leaf is None else next(remaining) for leaf in kept.leaves])
        rest = _Rest(weight_grads, _storages((*kept.leaves, *grads, *result)))
        rest.num_bytes = self._sizes.get(("rest", kept.shapes), -1)
        if rest.num_bytes < 0:
            rest.num_bytes = self._sizes["rest", kept.shapes] = weight_grads.held_bytes(self._owned())
        self._held_bytes += rest.num_bytes
        self._rests[microbatch] = rest
        return result

    def weight_grad(self, microbatch: int) -> None:
        """Add the parameters' gradients to what they have; nothing of ``microbatch`` is kept after it."""
        rest = self._take_rest(microbatch)
        self._held_bytes -= rest.num_bytes
        fresh = self._without_grad()
        if self._put_off:
            foreign = self._run_put_off(rest)
        else:
            run = rest.weight_grads.run_in_pieces if self._in_pieces else rest.weight_grads.run
            run()
            foreign = rest.foreign
        self._finish(fresh, foreign)

    def roots(self, microbatch: int) -> Sequence[GradientEdge]:
        """Return where the gradients of the outputs of ``microbatch`` will enter its graph."""
        kept = self._forwards.get(microbatch)
        return () if kept is None or kept.edges is None else kept.edges

    def early_weight_grads(self, microbatch: int) -> list[Tensor]:
        """Return the parameters whose gradients of ``microbatch`` were computed with the input gradients."""
        rest = self._rests[microbatch].weight_grads
        return [edge.node.variable for edge, _ in rest.ready]  # type: ignore[attr-defined]

    def put_off_weight_grad(self, microbatch: int, owned: Callable[[Grads], Grads]) -> None:
        """Leave the ``weight_grad`` of ``microbatch`` to the next one, which computes both together.

        Args:
            microbatch: whose weight gradients are waiting.
            owned: gives tensors back with a copy of each whose memory is used again after this.
        """
        rest = self._take_rest(microbatch)
        rest.weight_grads.own(owned)
        self._put_off.append(rest)

    def recompute(self, microbatch: int) -> None:
        """Run the forward again, for a stage that keeps only its inputs; at most once, before the backward."""
        kept = self._forwards.get(microbatch)
        if kept is None or kept.edges is not None:
            raise ConfigError(f"microbatch {microbatch} has no forward to recompute")
        self._recompute(kept)

    def forward_only(self, microbatch: int, inputs: Tensors) -> Tensors:
        """Run the forward without gradients and keep nothing; the outputs share no memory with the inputs."""
        with torch.no_grad():
            outputs = as_tensors(self.module(*inputs))
            taken = {storage_id(x) for x in inputs}
            return tuple([y.clone() if storage_id(y) in taken else y for y in outputs])

    def discard(self) -> None:
        """Drop everything kept for unfinished microbatches, after a step that failed."""
        self._forwards.clear()
        self._rests.clear()
        self._put_off.clear()
        self._held_bytes = 0

    def unshard(self) -> None:
        """Gather the parameters of a module under ``fully_shard``; others have nothing to gather."""
        if is_sharded(self.module):
            unshard(self.module)
            self._parameters = tuple(self.module.parameters())

    def reshard(self) -> None:
        """Let the gathered parameters go."""
        if is_sharded(self.module):
            reshard(self.module)
            self._parameters = tuple(self.module.parameters())

    def reduce_grad(self) -> None:
        """Sum the gradients of a module under ``fully_shard`` over its data-parallel ranks."""
        if is_sharded(self.module):
            reduce_grad(self.module)
            self._parameters = tuple(self.module.parameters())

    @property
    def recomputes(self) -> bool:
        """Whether the whole stage is recomputed."""
        return self._recomputes

    @property
    def batches_weight_grads(self) -> bool:
        """Whether W ops that follow each other are computed together."""
        return self._batch_weight_grads

    @property
    def activation_bytes(self) -> int:
        """The memory held now for unfinished microbatches, parameters not counted.

        Measured at the first microbatch of each set of input shapes. What a checkpointed submodule keeps in order to
        run again is not seen.
        """
        return self._held_bytes

    def _run(self, inputs: Tensors) -> tuple[Tensors, list[GradientEdge]]:
        outputs = []
        edges = []
        for y in as_tensors(self.module(*inputs)):
            if y.requires_grad:
                edges.append(gradient_edge(y))
                outputs.append(y.detach().requires_grad_())
            else:
                outputs.append(y.detach())
        return tuple(outputs), edges

    def _recompute(self, kept: _Forward) -> None:
        assert kept.rng is not None
        with kept.rng.replayed(kept.inputs):
            _, kept.edges = self._run(kept.inputs)
        kept.inputs, kept.rng = (), None
        self._held_bytes -= kept.num_bytes
        self._hold(kept, "graph")

    def _take(self, microbatch: int) -> _Forward:
        kept = self._forwards.pop(microbatch, None)
        if kept is None:
            raise ConfigError(f"microbatch {microbatch} has no forward waiting for its backward")
        if kept.edges is None:
            self._recompute(kept)
        self._held_bytes -= kept.num_bytes
        return kept

    def _take_rest(self, microbatch: int) -> _Rest:
        rest = self._rests.pop(microbatch, None)
        if rest is None:
            raise ConfigError(f"microbatch {microbatch} has no weight gradients waiting")
        return rest

    def _run_put_off(self, last: _Rest) -> set[int]:
        rests = [*self._put_off, last]
        self._held_bytes -= sum(rest.num_bytes for rest in self._put_off)
        self._put_off.clear()
        run_stacked([rest.weight_grads for rest in rests])
        return set().union(*(rest.foreign for rest in rests))

    def _hold(self, kept: _Forward, state: str) -> None:
        """Count the memory of ``kept``, in the state of holding its ``"inputs"`` or its ``"graph"``."""
        num_bytes = self._sizes.get((state, kept.shapes))
        if num_bytes is None:
            nodes = [edge.node for edge in kept.edges or ()]
            leaves = [leaf for leaf in kept.leaves if leaf is not None]
            num_bytes = held_bytes(nodes, (*kept.inputs, *leaves), self._owned())
            num_bytes += kept.rng.num_bytes if kept.rng is not None else 0
            self._sizes[state, kept.shapes] = num_bytes
        kept.num_bytes = num_bytes
        self._held_bytes += num_bytes

    def _owned(self) -> Iterable[Tensor]:
        return map(local, (*self._parameters, *self.module.buffers()))

    def _without_grad(self) -> list[nn.Parameter]:
        """Return the parameters whose ``grad`` this op may create."""
        if self._main_grad_dtype is not None:
            return []
        return [p for p in self._parameters if p.grad is None and p.requires_grad]

    def _finish(self, fresh: list[nn.Parameter], foreign: set[int]) -> None:
        """See to it that each gradient has memory of its own, and move it on where the stage has main gradients.

        Autograd lets a parameter's first ``grad`` be a view of a gradient on its way: of one that came in or goes out
        (``foreign``), whose memory is used again, or of another parameter's.
        """
        for p in fresh:
            grad = p.grad
            if grad is not None and grad.layout is torch.strided:
                if storage_id(grad) in foreign:
                    p.grad = grad.clone()
                else:
                    foreign.add(storage_id(grad))
        if self._main_grad_dtype is not None:
            for p in self._parameters:
                add_to_main_grad(p, self._main_grad_dtype)


def _leaves(inputs: Tensors) -> Tensors:
    """Return ``inputs`` as leaves without a gradient, each of which stands in it once."""
    is_repeated = len(inputs) > 1 and len({id(x) for x in inputs}) < len(inputs)
    if not is_repeated and all(x.grad_fn is None and x.grad is None for x in inputs):
        return inputs
    return tuple([x.detach().requires_grad_(x.requires_grad) for x in inputs])


def _paired(kept: _Forward, grads: Grads) -> tuple[Sequence[GradientEdge], Sequence[Tensor]]:
    """Return the edges at which a gradient enters the graph, and the gradients."""
    assert kept.edges is not None
    if len(grads) != len(kept.edges):
        raise ConfigError(f"{len(kept.edges)} outputs need a gradient, {len(grads)} gradients came")
    for grad in grads:
        if grad is None:
            break
    else:
        return kept.edges, grads  # type: ignore[return-value]
    given = [(edge, grad) for edge, grad in zip(kept.edges, grads, strict=True) if grad is not None]
    return [edge for edge, _ in given], [grad for _, grad in given]


def _storages(tensors: Sequence[Tensor | None]) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in tensors if tensor is not None}
