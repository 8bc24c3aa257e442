"""One rank's part in a split output layer: its shard, and on the last stage's rank the loss.

Shapes: b samples and s positions of a microbatch, N = s · b tokens.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from pipert.errors import ConfigError
from pipert.megatron.call import Call
from pipert.megatron.deferred_loss import DeferredLossForward
from pipert.megatron.output_layer import OutputLayerShard
from pipert.megatron.root_grad import NO_LOSS, root_grad
from pipert.megatron.stage import MegatronStage
from pipert.stages import SplitVocabulary


class ScriptsLoss:
    """The loss of a script, which the rank of the last stage computes (see :class:`pipert.stages.CallersLoss`).

    Args:
        output_layer: this rank's shard.
        owner: the stage of the chunk that has it as a parameter; on the rank of the last stage, that one.

    Attributes:
        weight: of the shard.
        vocabulary: the shard, as the engine takes it.
    """

    def __init__(self, output_layer: OutputLayerShard, owner: MegatronStage) -> None:
        self._owner = owner
        weight = output_layer.weight
        self.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight)
        self.vocabulary = SplitVocabulary(output_layer.shard, output=self.weight, loss=self)
        self._call: Call | None = None

    def begin(self, call: Call) -> None:
        """Begin a step."""
        self._call = call

    @property
    def num_tokens(self) -> int:
        """N."""
        assert self._call is not None
        return self._call.seq_length * self._call.micro_batch_size

    def targets(self, microbatch: int) -> Tensor:
        """See :class:`pipert.stages.CallersLoss`."""
        return self._forward.targets(microbatch)

    def loss_grad(self, microbatch: int, loss_N: Tensor) -> Tensor | None:
        """See :class:`pipert.stages.CallersLoss`.

        Raises:
            ConfigError: the loss is not what a backward can begin at.
        """
        assert self._call is not None
        loss, losses_bs = self._forward.loss(microbatch, loss_N)
        if not torch.is_grad_enabled():
            return None
        if not isinstance(loss, Tensor):
            raise ConfigError(NO_LOSS)
        (grad_bs,) = root_grad(loss, losses_bs, self._call.config) if loss.requires_grad else (None,)
        return None if grad_bs is None else grad_bs.transpose(0, 1).reshape(-1)

    def adding_weight_grad(self) -> AbstractContextManager[None]:
        """See :class:`pipert.stages.CallersLoss`."""
        return self._owner.adding_shard_gradient(self.weight, self.vocabulary.finish)

    @property
    def _forward(self) -> DeferredLossForward:
        assert isinstance(self._owner.module, DeferredLossForward)
        return self._owner.module
