"""The passes of a split vocabulary on one rank: S, T and the embedding, and the meetings around them.

Shapes: N tokens of a microbatch, D hidden, K statistics, p ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipert.engine.driver import Handler, Meter, named_failures
from pipert.engine.loss import Loss
from pipert.engine.meetings import Meetings
from pipert.errors import ConfigError
from pipert.kernels import EmbeddingShard, OutputShard, RowStatistics, ScoreState, combine
from pipert.kernels.accumulation import accumulation_dtype
from pipert.numerics import LossReduction, MicrobatchLoss
from pipert.ops import OpKind
from pipert.stages import Grads, Tensors
from pipert.stages.split_vocabulary import SplitVocabulary

if TYPE_CHECKING:
    from pipert.plan import Plan


def splits_vocabulary(plan: Plan) -> tuple[bool, bool]:
    """Whether the plan splits the input embedding, and whether the output layer."""
    kinds = {op.kind for op in plan.ops}
    return OpKind.EMBED in kinds, OpKind.SCORE in kinds


def algorithm_of(plan: Plan) -> int:
    """Return 1 where T makes the input's gradient, before VGRAD sums it; 2 where S made the most of it."""
    late = (OpKind.SCORE_W, OpKind.VGRAD)
    first = next((op.kind for op_id, op in enumerate(plan.ops) if op.kind in late and plan.rank_of(op_id) == 0), None)
    return 1 if first is OpKind.SCORE_W else 2


def adopt_vocabulary(
    plan: Plan, given: SplitVocabulary | Mapping[int, SplitVocabulary] | None, ranks: Sequence[int]
) -> dict[int, SplitVocabulary]:
    """Check that the shards are those that ``ranks`` hold in ``plan``, and return them by rank.

    Raises:
        ConfigError: shards are missing, too many, or of another size.
    """
    shards = {ranks[0]: given} if isinstance(given, SplitVocabulary) else dict(given or {})
    embeds, scores = splits_vocabulary(plan)
    if sorted(shards) != (sorted(ranks) if embeds or scores else []):
        expected = f"a shard for each of the ranks {list(ranks)}" if embeds or scores else "no shards"
        raise ConfigError(f"vocabulary: expected {expected}, got them for {sorted(shards) or 'none'}")
    for rank, vocabulary in shards.items():
        shard = vocabulary.shard
        if (shard.index, shard.num_shards) != (rank, plan.num_ranks):
            expected = f"shard {rank} of {plan.num_ranks}"
            raise ConfigError(
                f"vocabulary: expected {expected} on rank {rank}, got {shard.index} of {shard.num_shards}"
            )
        for needed, parameter, what in (
            (embeds, vocabulary.embedding, "input embedding"),
            (scores, vocabulary.output, "output layer"),
        ):
            if needed != (parameter is not None):
                does = "splits" if needed else "does not split"
                raise ConfigError(
                    f"vocabulary: the plan {does} the {what}, but rank {rank} has {'no' * needed or 'a'} shard of it"
                )
    return shards


def about_vocabulary(vocabulary: SplitVocabulary) -> list[Any]:
    """Return what must be the same on all ranks, as JSON values."""
    tied = vocabulary.embedding is vocabulary.output
    return [vocabulary.shard.vocab_size, repr(vocabulary.options), tied, vocabulary.bias is not None]


@dataclass(frozen=True, slots=True)
class Batch:
    """What a microbatch is made of, the same on all ranks.

    Attributes:
        tokens: of the input embedding; None where it is not split.
        targets: of the output layer, likewise.
        weights: of the targets; None for 1 each.
        rest: what the first stage is given beside the embedded tokens.
    """

    tokens: Tensor | None
    targets: Tensor | None
    weights: Tensor | None
    rest: tuple[Tensor, ...]


class Ends:
    """The model's two ends, where stages hand over to the shards: what a rank's stages made, by microbatch."""

    def __init__(self, num_microbatches: int) -> None:
        self.hidden: list[Tensor | None] = [None] * num_microbatches
        self.input_grads: list[Tensor | None] = [None] * num_microbatches

    def clear(self) -> None:
        """Forget everything."""
        num_microbatches = len(self.hidden)
        self.hidden = [None] * num_microbatches
        self.input_grads = [None] * num_microbatches


class VocabularyDriver:
    """Runs the passes of one rank.

    Args:
        plan: what runs.
        rank: the rank.
        vocabulary: its shard.
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
        self._meetings = meetings
        self._loss = loss
        self._reduction = reduction
        self._meter = meter
        self._training = training
        self._algorithm = algorithm_of(plan)
        self._step = 0
        self._embedding: EmbeddingShard | None = None
        self._output: OutputShard | None = None
        self._batches: Sequence[Batch] = ()
        self.ends = Ends(plan.num_microbatches)
        self.clear()

    def start(self, step: int, batches: Sequence[Batch]) -> None:
        """Begin a step."""
        self._step = step
        self._batches = batches
        self._embedding = self._vocabulary.embedding_shard()
        self._output = self._vocabulary.output_shard()

    def finish(self) -> None:
        """End a step; without gradients nothing needs its losses before."""
        if not self._training:
            for microbatch in self._unrecorded:
                self._record_loss(microbatch)
                del self._all_shards[microbatch]
            self._unrecorded.clear()
        self._vocabulary.finish()

    def clear(self) -> None:
        """Forget everything unfinished."""
        self.ends.clear()
        self._vocabulary.discard()
        self._embedded: dict[int, Tensor] = {}
        self._states: dict[int, ScoreState] = {}
        self._parts: dict[int, RowStatistics] = {}
        self._all_shards: dict[int, RowStatistics] = {}
        self._input_grads: dict[int, Tensor] = {}
        self._unrecorded: list[int] = []

    def handler(self, kind: OpKind) -> Handler:
        """Return the function that the executor calls, with the microbatch, for ops of this kind."""
        run: Callable[[int], None] = {
            OpKind.EMBED: self._embed,
            OpKind.EMBED_W: self._add_embedding_grad,
            OpKind.SCORE: self._score,
            OpKind.SCORE_W: self._add_weight_grad,
            OpKind.VEMBED: self._sum_embedded,
            OpKind.VBCAST: self._broadcast_hidden,
            OpKind.VSTATS: self._gather_statistics,
            OpKind.VGRAD: self._sum_input_grads,
            OpKind.VEMBED_GRAD: self._broadcast_embedding_grad,
        }[kind]
        return named_failures(run, kind, self._rank if kind.has_place else -1, self._rank, lambda: self._step)

    # The two ends, where stages take over.

    def embedded(self, microbatch: int) -> Tensors:
        """Return the inputs of the first stage, on its rank: the embedded tokens and what is given beside them."""
        shape = self._tokens(microbatch).shape
        total_ND = self._meetings.result(OpKind.VEMBED, microbatch, self._rank)
        embedded = total_ND.view(*shape, total_ND.shape[1]).requires_grad_(self._training)
        return (embedded, *self._batches[microbatch].rest)

    def hidden_grad(self, microbatch: int) -> Tensor:
        """Return the gradient of the last stage's output, on its rank."""
        hidden = self.ends.hidden[microbatch]
        assert hidden is not None
        self.ends.hidden[microbatch] = None
        total_ND = self._meetings.result(OpKind.VGRAD, microbatch, self._rank)
        return total_ND.to(hidden.dtype).view(hidden.shape)

    # The input embedding.

    def _embed(self, microbatch: int) -> None:
        assert self._embedding is not None
        self._embedded[microbatch] = self._embedding.embed(self._tokens(microbatch).reshape(-1))

    def _sum_embedded(self, microbatch: int) -> None:
        self._begin(OpKind.VEMBED, microbatch, 0, self._embedded.pop(microbatch))

    def _broadcast_embedding_grad(self, microbatch: int) -> None:
        weight, tokens = self._vocabulary.embedding, self._tokens(microbatch)
        assert weight is not None
        grad, self.ends.input_grads[microbatch] = self.ends.input_grads[microbatch], None
        if grad is None:
            grad = weight.new_empty((tokens.numel(), weight.shape[1]))
        self._begin(OpKind.VEMBED_GRAD, microbatch, 0, grad.detach().reshape(tokens.numel(), weight.shape[1]))

    def _add_embedding_grad(self, microbatch: int) -> None:
        weight = self._vocabulary.embedding
        assert self._embedding is not None and weight is not None
        grad_ND = self._meetings.result(OpKind.VEMBED_GRAD, microbatch, self._rank)
        if weight.requires_grad:
            tokens_N = self._tokens(microbatch).reshape(-1)
            self._embedding.add_grad(grad_ND, tokens_N, self._vocabulary.gradient_sum(weight))

    # The output layer.

    def _broadcast_hidden(self, microbatch: int) -> None:
        weight, targets = self._vocabulary.output, self._targets(microbatch)
        assert weight is not None
        hidden = self.ends.hidden[microbatch]
        if hidden is None:
            hidden = weight.new_empty((*targets.shape, weight.shape[1]))
        else:
            _check_hidden(hidden, targets, weight)
        last = self._plan.num_stages - 1
        self._begin(OpKind.VBCAST, microbatch, last, hidden.detach().reshape(targets.numel(), weight.shape[1]))
        if not self._training:
            self.ends.hidden[microbatch] = None

    def _score(self, microbatch: int) -> None:
        assert self._output is not None
        x_ND = self._meetings.result(OpKind.VBCAST, microbatch, self._rank)
        targets_N = self._targets(microbatch).reshape(-1)
        if not self._training:
            self._parts[microbatch] = self._output.statistics(x_ND, targets_N)
            return
        state = self._output.score(x_ND, targets_N, algorithm=self._algorithm)
        self._states[microbatch] = state
        self._parts[microbatch] = state.statistics
        self._meter.hold(_bytes_of(state))

    def _gather_statistics(self, microbatch: int) -> None:
        self._begin(OpKind.VSTATS, microbatch, 0, self._parts.pop(microbatch).packed_KN)
        if not self._training and self._has_last_stage(microbatch):
            self._unrecorded.append(microbatch)

    def _sum_input_grads(self, microbatch: int) -> None:
        if self._algorithm == 2:
            self._input_grads[microbatch] = self._input_grad(microbatch)
        if self._has_last_stage(microbatch):
            self._record_loss(microbatch)
        self._begin(OpKind.VGRAD, microbatch, self._plan.num_stages - 1, self._input_grads.pop(microbatch))
        self._drop_statistics(microbatch)

    def _add_weight_grad(self, microbatch: int) -> None:
        assert self._output is not None and self._vocabulary.output is not None
        vocabulary, weight, bias = self._vocabulary, self._vocabulary.output, self._vocabulary.bias
        if self._algorithm == 1:
            self._input_grads[microbatch] = self._input_grad(microbatch)
        state = self._states.pop(microbatch)
        if weight.requires_grad:
            self._output.add_weight_grad(
                state,
                self._statistics(microbatch),
                self._loss_grad(microbatch),
                vocabulary.gradient_sum(weight),
                None if bias is None else vocabulary.gradient_sum(bias),
            )
        self._meter.hold(-_bytes_of(state))
        self._drop_statistics(microbatch)

    def _input_grad(self, microbatch: int) -> Tensor:
        assert self._output is not None
        statistics, loss_grad_N = self._statistics(microbatch), self._loss_grad(microbatch)
        return self._output.input_grad(self._states[microbatch], statistics, loss_grad_N)

    def _record_loss(self, microbatch: int) -> None:
        """Record the loss, as :func:`pipert.numerics.microbatch_loss` has it."""
        assert self._output is not None
        targets_N = self._targets(microbatch).reshape(-1)
        loss_N = self._output.losses(self._statistics(microbatch), targets_N)
        weights_N = self._weights(microbatch)
        total, count = (loss_N * weights_N).sum(), weights_N.sum()
        one = torch.ones((), dtype=torch.int64, device=total.device)
        value, count = (
            (total / _divisor(count), one) if self._reduction == "microbatch" else (total, count.to(one.dtype))
        )
        self._loss.record(microbatch, MicrobatchLoss(value, torch.ones_like(value), value, count))

    def _loss_grad(self, microbatch: int) -> Tensor:
        """Return the gradient of each token's loss; with ``"token"`` the end of the step divides by their number."""
        weights_N = self._weights(microbatch)
        if self._reduction == "token":
            return weights_N
        return weights_N / (_divisor(weights_N.sum()) * self._plan.num_microbatches)

    def _weights(self, microbatch: int) -> Tensor:
        """Return the weight of each token's loss; 0 where its target is ignored."""
        kept_N = self._targets(microbatch).reshape(-1) != self._vocabulary.options.ignore_index
        weights = self._batches[microbatch].weights
        assert self._vocabulary.output is not None
        dtype = accumulation_dtype(self._vocabulary.output.dtype)
        return kept_N.to(dtype) if weights is None else torch.where(kept_N, weights.reshape(-1).to(dtype), 0)

    def _statistics(self, microbatch: int) -> RowStatistics:
        """Return those of all shards together."""
        if microbatch not in self._all_shards:
            self._all_shards[microbatch] = combine(self._meetings.result(OpKind.VSTATS, microbatch, self._rank))
        return self._all_shards[microbatch]

    def _drop_statistics(self, microbatch: int) -> None:
        """Let go of them after T and VGRAD, whichever is later."""
        if microbatch not in self._states and microbatch not in self._input_grads:
            del self._all_shards[microbatch]

    def _has_last_stage(self, microbatch: int) -> bool:
        return self._plan.rank_of_stage(self._plan.num_stages - 1, microbatch) == self._rank

    def _begin(self, kind: OpKind, microbatch: int, root_stage: int, tensor: Tensor) -> None:
        self._meetings.begin(kind, microbatch, self._rank, self._plan.rank_of_stage(root_stage, microbatch), tensor)

    def _tokens(self, microbatch: int) -> Tensor:
        tokens = self._batches[microbatch].tokens
        assert tokens is not None
        return tokens

    def _targets(self, microbatch: int) -> Tensor:
        targets = self._batches[microbatch].targets
        assert targets is not None
        return targets


class EmbeddedTokens:
    """The first stage's inputs where the embedding is split, as its source; see :mod:`pipert.engine.ports`."""

    def __init__(self, driver: VocabularyDriver) -> None:
        self._driver = driver

    def take(self, microbatch: int) -> Grads:
        """See :class:`pipert.engine.ports.Source`."""
        return self._driver.embedded(microbatch)

    def give(self, microbatch: int, tensors: Grads) -> None:
        """Take the gradients of those inputs; see :class:`pipert.engine.ports.Sink`."""
        self._driver.ends.input_grads[microbatch] = tensors[0]

    def owned(self, microbatch: int, tensors: Grads) -> Grads:
        """See :class:`pipert.engine.ports.Source`."""
        return tensors

    def clear(self) -> None:
        """See :class:`pipert.engine.ports.Source`."""


class HiddenStates:
    """The last stage's outputs where the output layer is split, as its sink, and the source of their gradients."""

    def __init__(self, driver: VocabularyDriver) -> None:
        self._driver = driver

    def give(self, microbatch: int, tensors: Grads) -> None:
        """See :class:`pipert.engine.ports.Sink`."""
        hidden = tensors[0] if len(tensors) == 1 else None
        if hidden is None:
            raise ConfigError(
                f"the last stage must return one tensor, the output layer's input, not {len(tensors)}: its vocabulary "
                "is split over the ranks"
            )
        self._driver.ends.hidden[microbatch] = hidden

    def take(self, microbatch: int) -> Grads:
        """See :class:`pipert.engine.ports.Source`."""
        return (self._driver.hidden_grad(microbatch),)

    def owned(self, microbatch: int, tensors: Grads) -> Grads:
        """See :class:`pipert.engine.ports.Source`."""
        return tensors

    def clear(self) -> None:
        """See :class:`pipert.engine.ports.Source`."""


def batches(plan: Plan, inputs: Sequence[Tensors], targets: Sequence[Any], reduction: LossReduction) -> list[Batch]:
    """Sort out what the ranks need of each microbatch.

    Args:
        plan: what runs.
        inputs: per microbatch the tokens, and what the first stage is given beside their embeddings.
        targets: per microbatch, or (targets, weights).
        reduction: what the loss is averaged over.

    Raises:
        ConfigError: tokens or targets are missing on this rank, or are no integers; weights that do not fit.
    """
    embeds, scores = splits_vocabulary(plan)
    result = []
    for tensors, target in zip(inputs, targets, strict=True):
        pair = target if isinstance(target, (tuple, list)) else (target, None)
        if scores and len(pair) != 2:
            raise ConfigError(f"targets: expected a tensor, or targets and their weights, got {len(pair)} values")
        tokens = _integers("inputs", tensors[0] if tensors else None) if embeds else None
        wanted = _integers("targets", pair[0]) if scores else None
        weights = _weights(wanted, pair[1], reduction) if wanted is not None else None
        result.append(Batch(tokens, wanted, weights, tuple(tensors[1:])))
    return result


def _integers(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor) and not value.is_floating_point():
        return value
    found = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
    raise ConfigError(f"{name}: where the vocabulary is split, every rank needs all of them, as integers; got {found}")


def _weights(targets: Tensor, weights: Any, reduction: LossReduction) -> Tensor | None:
    if weights is None:
        return None
    if not isinstance(weights, Tensor) or weights.shape != targets.shape:
        found = f"a tensor of {list(weights.shape)}" if isinstance(weights, Tensor) else type(weights).__name__
        raise ConfigError(f"targets: their weights must be {list(targets.shape)}, as they are; got {found}")
    if reduction == "token" and weights.is_floating_point():
        raise ConfigError(
            "targets: with loss_reduction='token' tokens are counted, so their weights must be a mask (bool or integers), "
            f"not {weights.dtype}"
        )
    return weights


def _check_hidden(hidden: Tensor, targets: Tensor, weight: Tensor) -> None:
    expected = (*targets.shape, weight.shape[1])
    if hidden.shape != expected or hidden.dtype != weight.dtype:
        raise ConfigError(
            f"the last stage's output must be {list(expected)} of {weight.dtype}, as its targets and the output layer's "
            f"shard are; it is {list(hidden.shape)} of {hidden.dtype}"
        )


def _divisor(count: Tensor) -> Tensor:
    """Return ``count``, or 1 where nothing counts: the loss is then 0."""
    return torch.where(count == 0, 1, count)


def _bytes_of(state: ScoreState) -> int:
    tensors = (state.x_ND, state.exp_NV, state.product_ND)
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
