"""The passes of a split input embedding on one rank, and what feeds the first stage.

Shapes: N tokens of a microbatch, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from pipert.engine.meetings import Meetings
from pipert.engine.vocab.batches import Batch
from pipert.ops import OpKind
from pipert.stages import Grads, SplitVocabulary

if TYPE_CHECKING:
    from pipert.engine.driver import Handler
    from pipert.plan import Plan


class EmbeddingPasses:
    """Looks tokens up in a rank's shard and adds up their gradients; a source of inputs and a sink of their gradients.

    Args:
        plan: what runs.
        rank: the rank.
        vocabulary: its shard.
        weight: ``vocabulary.embedding``.
        meetings: with the other ranks.
        training: whether the plan has backwards.
    """

    def __init__(
        self,
        plan: Plan,
        rank: int,
        vocabulary: SplitVocabulary,
        weight: nn.Parameter,
        meetings: Meetings,
        *,
        training: bool,
    ) -> None:
        self._plan = plan
        self._rank = rank
        self._vocabulary = vocabulary
        self._weight = weight
        self._meetings = meetings
        self._training = training
        self._batches: Sequence[Batch] = ()
        self._parts: dict[int, Tensor] = {}
        self._grads: dict[int, Tensor] = {}
        self.handlers: dict[OpKind, Handler] = {
            OpKind.EMBED: self._embed,
            OpKind.VEMBED: self._sum_parts,
            OpKind.VEMBED_GRAD: self._broadcast_grad,
            OpKind.EMBED_W: self._add_grad,
        }

    def start(self, batches: Sequence[Batch]) -> None:
        """Begin a step."""
        self._batches = batches
        self._shard = self._vocabulary.embedding_shard(self._weight)

    def take(self, microbatch: int) -> Grads:
        """Return the first stage's inputs on its rank: the embedded tokens, and what is given beside them."""
        embedded_ND = self._meetings.result(OpKind.VEMBED, microbatch, self._rank)
        embedded = embedded_ND.view(*self._tokens(microbatch).shape, embedded_ND.shape[1])
        return (embedded.requires_grad_(self._training), *self._batches[microbatch].rest)

    def give(self, microbatch: int, tensors: Grads) -> None:
        """Take the gradients of those inputs."""
        grad = tensors[0]
        assert grad is not None
        self._grads[microbatch] = grad.detach()

    def owned(self, microbatch: int, tensors: Grads) -> Grads:
        """See :class:`pipert.engine.ports.Source`."""
        return tensors

    def clear(self) -> None:
        """Forget everything unfinished."""
        self._parts.clear()
        self._grads.clear()

    def _embed(self, microbatch: int) -> None:
        self._parts[microbatch] = self._shard.embed(self._tokens(microbatch).reshape(-1))

    def _sum_parts(self, microbatch: int) -> None:
        self._begin(OpKind.VEMBED, microbatch, self._parts.pop(microbatch))

    def _broadcast_grad(self, microbatch: int) -> None:
        shape = (self._tokens(microbatch).numel(), self._weight.shape[1])
        grad = self._grads.pop(microbatch, None)
        part_ND = self._weight.new_empty(shape) if grad is None else grad.reshape(shape)
        self._begin(OpKind.VEMBED_GRAD, microbatch, part_ND)

    def _add_grad(self, microbatch: int) -> None:
        grad_ND = self._meetings.result(OpKind.VEMBED_GRAD, microbatch, self._rank)
        if self._weight.requires_grad:
            total_VD = self._vocabulary.gradient_sum(self._weight)
            self._shard.add_grad(grad_ND, self._tokens(microbatch).reshape(-1), total_VD)

    def _begin(self, kind: OpKind, microbatch: int, tensor: Tensor) -> None:
        self._meetings.begin(kind, microbatch, self._rank, self._plan.rank_of_stage(0, microbatch), tensor)

    def _tokens(self, microbatch: int) -> Tensor:
        tokens = self._batches[microbatch].tokens
        assert tokens is not None
        return tokens
