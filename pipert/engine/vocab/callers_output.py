"""The passes of a split output layer on one rank where the loss is the caller's, at the end of the pipeline.

Shapes: N tokens of a microbatch, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipert.engine.vocab.batches import Batch
from pipert.engine.vocab.output import OutputPasses
from pipert.errors import ConfigError
from pipert.kernels.accumulation import accumulation_dtype
from pipert.ops import OpKind
from pipert.stages import CallersLoss, Grads


class CallersOutputPasses(OutputPasses):
    """See :class:`pipert.stages.CallersLoss` for who makes what, and for what travels beside a meeting's own tensor."""

    @property
    def _callers(self) -> CallersLoss:
        loss = self._vocabulary.loss
        assert loss is not None
        return loss

    def start(self, batches: Sequence[Batch]) -> None:
        """Begin a step, of which no batches are known."""
        self._forget()
        super().start(batches)

    def finish(self) -> None:
        """End a step."""
        super().finish()
        self._forget()

    def give(self, microbatch: int, tensors: Grads) -> None:
        """Take the last stage's output.

        Raises:
            ConfigError: it does not fit the output layer.
        """
        hidden = tensors[0] if len(tensors) == 1 else None
        num_tokens, hidden_size, dtype = self._callers.num_tokens, self._weight.shape[1], self._weight.dtype
        if (
            hidden is None
            or hidden.shape[-1] != hidden_size
            or hidden.numel() != num_tokens * hidden_size
            or hidden.dtype != dtype
        ):
            found = f"{len(tensors)} outputs" if hidden is None else f"{list(hidden.shape)} of {hidden.dtype}"
            raise ConfigError(
                f"the last stage's output must be one tensor of {num_tokens} tokens of size {hidden_size} and {dtype}, "
                f"the input of the split output layer; it is {found}"
            )
        self._shapes[microbatch] = hidden.shape
        self._hidden[microbatch] = hidden.detach()

    def take(self, microbatch: int) -> Grads:
        """Return the gradient of that output, on the rank of the last stage."""
        total_ND = self._meetings.result(OpKind.VGRAD, microbatch, self._rank)
        loss_grad_N = self._loss_grads.pop(microbatch)
        return ((total_ND * loss_grad_N[:, None]).to(self._weight.dtype).view(self._shapes.pop(microbatch)),)

    def clear(self) -> None:
        """Forget everything unfinished."""
        super().clear()
        self._forget()

    def _forget(self) -> None:
        self._targets_N: dict[int, Tensor] = {}
        self._loss_grads: dict[int, Tensor] = {}
        self._shapes: dict[int, torch.Size] = {}

    def _broadcast_hidden(self, microbatch: int) -> None:
        num_tokens, hidden_size = self._callers.num_tokens, self._weight.shape[1]
        hidden = self._hidden.pop(microbatch, None)
        if hidden is None:
            x_ND = self._weight.new_empty((num_tokens, hidden_size))
            targets_N = self._weight.new_empty(num_tokens, dtype=torch.int64)
        else:
            x_ND, targets_N = hidden.reshape(num_tokens, hidden_size), self._callers.targets(microbatch)
        self._begin(OpKind.VBCAST, microbatch, x_ND)
        self._begin(OpKind.VBCAST, microbatch, targets_N, beside=True)

    def _targets(self, microbatch: int) -> Tensor:
        if microbatch not in self._targets_N:
            self._targets_N[microbatch] = self._meetings.result(OpKind.VBCAST, microbatch, self._rank, beside=True)
        return self._targets_N[microbatch]

    def _sum_input_grads(self, microbatch: int) -> None:
        super()._sum_input_grads(microbatch)
        loss_grad_N = self._loss_grads.get(microbatch)
        if loss_grad_N is None:
            dtype = accumulation_dtype(self._weight.dtype)
            loss_grad_N = self._weight.new_empty(self._callers.num_tokens, dtype=dtype)
        self._begin(OpKind.VGRAD, microbatch, loss_grad_N, beside=True)
        del self._targets_N[microbatch]

    def _add_weight_grad(self, microbatch: int) -> None:
        with self._callers.adding_weight_grad():
            super()._add_weight_grad(microbatch)

    def _input_grad(self, microbatch: int) -> Tensor:
        ones_N = self._weight.new_ones(self._callers.num_tokens, dtype=accumulation_dtype(self._weight.dtype))
        part_ND: Tensor = self._shard.input_grad(self._states[microbatch], self._statistics(microbatch), ones_N)
        return part_ND

    def _record_loss(self, microbatch: int) -> None:
        """Let the caller have the losses, and keep their gradients."""
        loss_N = self._shard.losses(self._statistics(microbatch), self._targets(microbatch))
        with torch.set_grad_enabled(self._training):
            grad_N = self._callers.loss_grad(microbatch, loss_N)
        if self._training:
            self._loss_grads[microbatch] = torch.zeros_like(loss_N) if grad_N is None else grad_N.to(loss_N.dtype)

    def _loss_grad(self, microbatch: int) -> Tensor:
        return self._meetings.result(OpKind.VGRAD, microbatch, self._rank, beside=True)
