"""A PipelineStage of torch's as a stage of a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from pipert.errors import ConfigError
from pipert.stages import Grads, Stage, Tensors
from pipert.stages.graph import storage_id


@dataclass(frozen=True, slots=True)
class Batch:
    """What a step was called with, by microbatch.

    Attributes:
        args: positional arguments of the first stage.
        kwargs: keyword arguments of every stage of this rank.
        targets: of the loss; None where there is no loss to compute.
        loss_kwargs: further keyword arguments of the loss.
        keeps_outputs: whether the last stage's outputs are wanted.
    """

    args: Sequence[tuple[Any, ...]]
    kwargs: Sequence[Mapping[str, Any]]
    targets: Sequence[Tensor] | None
    loss_kwargs: Mapping[str, Any]
    keeps_outputs: bool


class TorchStage:
    """Runs the ops of one PipelineStage (see :class:`pipert.stages.StageProtocol`).

    The last stage computes the loss in its forward. A backward begins at the loss itself, with a gradient of one, as
    torch has it; the engine's own loss divides by the number of microbatches.

    Args:
        submod: the PipelineStage's module.
        is_first: whether it begins the pipeline, and so takes the step's arguments.
        is_last: whether it ends it.
        loss_fn: ``loss_fn(output, target, **loss_kwargs)``, a scalar.
    """

    def __init__(self, submod: nn.Module, is_first: bool, is_last: bool, loss_fn: Callable[..., Tensor] | None) -> None:
        self.module = _Forward(submod, is_first, is_last, loss_fn)
        self._stage = Stage(self.module)
        self._is_last = is_last
        self._root_grads: dict[int, Grads] = {}

    def begin(self, batch: Batch) -> None:
        """Begin a step."""
        self.module.batch = batch

    def end(self) -> tuple[list[Any], list[Tensor]]:
        """End it: return the last stage's outputs and losses in the order of microbatches, nothing elsewhere."""
        module = self.module
        outputs, losses = ([made[key] for key in sorted(made)] for made in (module.outputs, module.losses))
        module.clear()
        return outputs, losses

    def forward(self, microbatch: int, inputs: Tensors) -> Tensors:
        """Run the forward of ``microbatch``; on the last stage its loss, too, and hand nothing on."""
        self.module.microbatch = microbatch
        outputs = self._stage.forward(microbatch, inputs)
        if not self._is_last:
            return outputs
        self._root_grads[microbatch] = tuple([torch.ones_like(loss) for loss in outputs if loss.requires_grad])
        return ()

    def forward_only(self, microbatch: int, inputs: Tensors) -> Tensors:
        """Run the forward of ``microbatch`` without gradients."""
        self.module.microbatch = microbatch
        outputs = self._stage.forward_only(microbatch, inputs)
        return () if self._is_last else outputs

    def backward(self, microbatch: int, grads: Grads) -> Grads:
        """Run the full backward."""
        return self._stage.backward(microbatch, self._root_grads.pop(microbatch) if self._is_last else grads)

    def input_grad(self, microbatch: int, grads: Grads) -> Grads:
        """Return the inputs' gradients; keep what ``weight_grad`` needs."""
        return self._stage.input_grad(microbatch, self._root_grads.pop(microbatch) if self._is_last else grads)

    def weight_grad(self, microbatch: int) -> None:
        """Add the parameters' gradients to what they have."""
        self._stage.weight_grad(microbatch)

    def recompute(self, microbatch: int) -> None:
        """Modules recompute by themselves (``torch.utils.checkpoint``)."""
        raise ConfigError("the plan recomputes; use torch.utils.checkpoint in the module instead")

    def discard(self) -> None:
        """Drop everything kept for unfinished microbatches, after a step that failed."""
        self._stage.discard()
        self._root_grads.clear()
        self.module.clear()

    @property
    def activation_bytes(self) -> int:
        """The memory held now for unfinished microbatches."""
        return self._stage.activation_bytes


class _Forward(nn.Module):
    """Calls the module as torch does: the first stage with the step's arguments, every one with its keywords."""

    def __init__(self, submod: nn.Module, is_first: bool, is_last: bool, loss_fn: Callable[..., Tensor] | None) -> None:
        super().__init__()
        self.submod = submod
        self.batch: Batch | None = None
        self.microbatch = 0
        self.outputs: dict[int, Any] = {}
        self.losses: dict[int, Tensor] = {}
        self._is_first = is_first
        self._is_last = is_last
        self._loss_fn = loss_fn

    def forward(self, *inputs: Tensor) -> Any:
        """Return what goes to the next stage; on the last one the loss, None where none is computed."""
        batch, microbatch = self.batch, self.microbatch
        assert batch is not None
        args = batch.args[microbatch] if self._is_first else inputs
        output = self.submod(*args, **batch.kwargs[microbatch])
        if not self._is_last:
            return output
        if batch.keeps_outputs:
            self.outputs[microbatch] = _kept(output, inputs)
        if self._loss_fn is None or batch.targets is None:
            return None
        loss = self._loss_fn(output, batch.targets[microbatch], **batch.loss_kwargs)
        if loss.numel() != 1:
            raise ConfigError(f"the loss has shape {tuple(loss.shape)}; a backward begins at a scalar")
        self.losses[microbatch] = loss.detach()
        return loss

    def clear(self) -> None:
        """Forget the step."""
        self.batch = None
        self.outputs, self.losses = {}, {}


def _kept(output: Any, inputs: Tensors) -> Any:
    """Return ``output`` without its graph, and with a copy of what lies in the memory of an input, which is reused."""
    taken = {storage_id(x) for x in inputs}
    return tree_map_only(Tensor, lambda y: y.detach().clone() if storage_id(y) in taken else y.detach(), output)
