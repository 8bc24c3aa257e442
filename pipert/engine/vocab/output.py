"""The passes of a split output layer on one rank: S, T, and the end of the pipeline, where a loss is.

Shapes: N tokens of a microbatch, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipert.engine.loss import Loss
from pipert.engine.meetings import Meetings
from pipert.engine.vocab.adopt import algorithm_of
from pipert.engine.vocab.batches import Batch
from pipert.errors import ConfigError
from pipert.kernels import RowStatistics, ScoreState
from pipert.kernels.accumulation import accumulation_dtype
from pipert.kernels.coefficients import Coefficients
from pipert.numerics import LossReduction, MicrobatchLoss
from pipert.ops import OpKind
from pipert.stages import Grads, SplitVocabulary

if TYPE_CHECKING:
    from pipert.engine.driver import Handler, Meter
    from pipert.plan import Plan


class OutputPasses:
    """Runs S and T on a rank's shard; where the last stage is, a sink of its outputs and a source of their gradients.

    Args:
        plan: what runs.
        rank: the rank.
        vocabulary: its shard.
        weight: ``vocabulary.output``.
        meetings: with the other ranks.
        loss: records the losses, on the rank of the last stage.
        reduction: what the loss is averaged over.
        meter: of the rank's activations.
        training: whether the plan has backwards.
    """

    def __init__(
        self,
        plan: Plan,
        rank: int,
        vocabulary: SplitVocabulary,
        weight: nn.Parameter,
        meetings: Meetings,
        loss: Loss,
        reduction: LossReduction,
        meter: Meter,
        *,
        training: bool,
    ) -> None:
        self._plan = plan
        self._rank = rank
        self._vocabulary = vocabulary
        self._weight = weight
        self._meetings = meetings
        self._loss = loss
        self._reduction = reduction
        self._meter = meter
        self._training = training
        self._algorithm = algorithm_of(plan)
        self._batches: Sequence[Batch] = ()
        # What is on its way from one op to the next, by microbatch.
        self._hidden: dict[int, Tensor] = {}
        self._parts: dict[int, RowStatistics] = {}
        self._states: dict[int, ScoreState] = {}
        self._all_shards: dict[int, RowStatistics] = {}
        self._coefficients: dict[int, Coefficients] = {}
        self._input_grads: dict[int, Tensor] = {}
        self._unrecorded: list[int] = []
        self.handlers: dict[OpKind, Handler] = {
            OpKind.VBCAST: self._broadcast_hidden,
            OpKind.SCORE: self._score if training else self._score_only,
            OpKind.VSTATS: self._gather_statistics,
            OpKind.VGRAD: self._sum_input_grads,
            OpKind.SCORE_W: self._add_weight_grad,
        }

    def start(self, batches: Sequence[Batch]) -> None:
        """Begin a step."""
        self._batches = batches
        self._shard = self._vocabulary.output_shard(self._weight)

    def finish(self) -> None:
        """End a step. Without gradients nobody has needed its statistics before."""
        for microbatch in self._unrecorded:
            self._record_loss(microbatch)
            del self._all_shards[microbatch]
        self._unrecorded.clear()

    def give(self, microbatch: int, tensors: Grads) -> None:
        """Take the last stage's output.

        Raises:
            ConfigError: it does not fit its targets and the output layer.
        """
        hidden = tensors[0] if len(tensors) == 1 else None
        expected, dtype = (*self._targets(microbatch).shape, self._weight.shape[1]), self._weight.dtype
        if hidden is None or hidden.shape != expected or hidden.dtype != dtype:
            found = f"{len(tensors)} outputs" if hidden is None else f"{list(hidden.shape)} of {hidden.dtype}"
            raise ConfigError(
                f"the last stage's output must be one tensor {list(expected)} of {dtype}, the input of the split "
                f"output layer for these targets; it is {found}"
            )
        self._hidden[microbatch] = hidden.detach()

    def take(self, microbatch: int) -> Grads:
        """Return the gradient of that output, on the rank of the last stage."""
        shape = (*self._targets(microbatch).shape, self._weight.shape[1])
        total_ND = self._meetings.result(OpKind.VGRAD, microbatch, self._rank)
        return (total_ND.to(self._weight.dtype).view(shape),)

    def owned(self, microbatch: int, tensors: Grads) -> Grads:
        """See :class:`pipert.engine.ports.Source`."""
        return tensors

    def clear(self) -> None:
        """Forget everything unfinished."""
        for of_microbatch in (self._hidden, self._parts, self._states, self._all_shards, self._coefficients):
            of_microbatch.clear()
        self._input_grads.clear()
        self._unrecorded.clear()

    def _broadcast_hidden(self, microbatch: int) -> None:
        shape = (self._targets(microbatch).numel(), self._weight.shape[1])
        hidden = self._hidden.pop(microbatch, None)
        x_ND = self._weight.new_empty(shape) if hidden is None else hidden.reshape(shape)
        self._begin(OpKind.VBCAST, microbatch, x_ND)

    def _score(self, microbatch: int) -> None:
        x_ND = self._meetings.result(OpKind.VBCAST, microbatch, self._rank)
        state = self._shard.score(x_ND, self._targets(microbatch).reshape(-1), algorithm=self._algorithm)
        self._states[microbatch] = state
        self._parts[microbatch] = state.statistics
        self._meter.hold(_bytes_of(state))

    def _score_only(self, microbatch: int) -> None:
        x_ND = self._meetings.result(OpKind.VBCAST, microbatch, self._rank)
        self._parts[microbatch] = self._shard.statistics(x_ND, self._targets(microbatch).reshape(-1))

    def _gather_statistics(self, microbatch: int) -> None:
        self._begin(OpKind.VSTATS, microbatch, self._parts.pop(microbatch).packed_KN)
        if not self._training and self._has_last_stage(microbatch):
            self._unrecorded.append(microbatch)

    def _sum_input_grads(self, microbatch: int) -> None:
        if self._algorithm == 2:
            self._input_grads[microbatch] = self._input_grad(microbatch)
        if self._has_last_stage(microbatch):
            self._record_loss(microbatch)
        self._begin(OpKind.VGRAD, microbatch, self._input_grads.pop(microbatch))
        self._drop_statistics(microbatch)

    def _add_weight_grad(self, microbatch: int) -> None:
        if self._algorithm == 1:
            self._input_grads[microbatch] = self._input_grad(microbatch)
        weight, bias = self._weight, self._vocabulary.bias
        statistics, loss_grad_N, late = self._late(microbatch)
        state = self._states.pop(microbatch)
        if weight.requires_grad:
            total_VD = self._vocabulary.gradient_sum(weight)
            self._shard.add_weight_grad(state, statistics, loss_grad_N, total_VD, late=late)
        if bias is not None and bias.requires_grad:
            self._shard.add_bias_grad(state, late, self._vocabulary.gradient_sum(bias))
        self._meter.hold(-_bytes_of(state))
        self._drop_statistics(microbatch)

    def _input_grad(self, microbatch: int) -> Tensor:
        statistics, loss_grad_N, late = self._late(microbatch)
        part_ND: Tensor = self._shard.input_grad(self._states[microbatch], statistics, loss_grad_N, late=late)
        return part_ND

    def _late(self, microbatch: int) -> tuple[RowStatistics, Tensor, Coefficients]:
        """Return what is known after S, and what both gradients are scaled by."""
        statistics, loss_grad_N = self._statistics(microbatch), self._loss_grad(microbatch)
        if microbatch not in self._coefficients:
            made = self._shard.coefficients(self._states[microbatch], statistics, loss_grad_N)
            self._coefficients[microbatch] = made
        return statistics, loss_grad_N, self._coefficients[microbatch]

    def _record_loss(self, microbatch: int) -> None:
        """Record what :func:`pipert.numerics.microbatch_loss` returns for a loss function."""
        loss_N = self._shard.losses(self._statistics(microbatch), self._targets(microbatch).reshape(-1))
        weights_N = self._weights(microbatch)
        value, count = (loss_N * weights_N).sum(), weights_N.sum()
        if self._reduction == "microbatch":
            value, count = value / _divisor(count), torch.ones_like(count)
        self._loss.record(microbatch, MicrobatchLoss(value, torch.ones_like(value), value, count.to(torch.int64)))

    def _loss_grad(self, microbatch: int) -> Tensor:
        """Return the gradient of each token's loss; with ``"token"`` the end of the step divides by their number."""
        weights_N = self._weights(microbatch)
        if self._reduction == "token":
            return weights_N
        return weights_N / (_divisor(weights_N.sum()) * self._plan.num_microbatches)

    def _weights(self, microbatch: int) -> Tensor:
        """Return the weight of each token's loss; 0 where its target is ignored."""
        kept_N = self._targets(microbatch).reshape(-1) != self._vocabulary.options.ignore_index
        dtype, weights = accumulation_dtype(self._weight.dtype), self._batches[microbatch].weights
        return kept_N.to(dtype) if weights is None else torch.where(kept_N, weights.reshape(-1).to(dtype), 0)

    def _statistics(self, microbatch: int) -> RowStatistics:
        """Return those of all shards together."""
        if microbatch not in self._all_shards:
            self._all_shards[microbatch] = self._shard.combine(
                self._meetings.result(OpKind.VSTATS, microbatch, self._rank)
            )
        return self._all_shards[microbatch]

    def _drop_statistics(self, microbatch: int) -> None:
        """Let go of them after T and VGRAD, whichever is later."""
        if microbatch not in self._states and microbatch not in self._input_grads:
            self._all_shards.pop(microbatch, None)
            self._coefficients.pop(microbatch, None)

    def _has_last_stage(self, microbatch: int) -> bool:
        return self._plan.rank_of_stage(self._plan.num_stages - 1, microbatch) == self._rank

    def _begin(self, kind: OpKind, microbatch: int, tensor: Tensor, *, beside: bool = False) -> None:
        root = self._plan.rank_of_stage(self._plan.num_stages - 1, microbatch)
        self._meetings.begin(kind, microbatch, self._rank, root, tensor, beside=beside)

    def _targets(self, microbatch: int) -> Tensor:
        targets = self._batches[microbatch].targets
        assert targets is not None
        return targets


def _divisor(count: Tensor) -> Tensor:
    """Return ``count``, or 1 where nothing counts: the loss is then 0."""
    return torch.where(count == 0, 1, count)


def _bytes_of(state: ScoreState) -> int:
    tensors = (state.x_ND, state.exp_NV, state.product_ND)
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
