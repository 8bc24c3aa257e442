"""What stands in for a model's output layer where the vocabulary is split over the pipeline.

Shapes: b samples and s positions of a microbatch, N = s · b tokens, D hidden, V rows of a shard.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipert.errors import ConfigError
from pipert.kernels import LossOptions, VocabShard

OPTION = "--pipert-vocab-parallel"
_IGNORED = LossOptions().ignore_index


@dataclass(frozen=True, slots=True)
class StandIn:
    """What a model has returned in the place of its tokens' losses, and what they will be made of.

    Attributes:
        losses_bs: fp32; NaN until they are there.
        hidden_sbD: what the output layer would have been given.
        targets_N: labels; those that are no row of the vocabulary have no loss and no gradient.
    """

    losses_bs: Tensor
    hidden_sbD: Tensor
    targets_N: Tensor


class OutputLayerShard(nn.Module):
    """A rank's rows of an output layer. As a layer it hands on what it is given.

    Called in each forward of its chunk, so that hooks on it (gathering of parameters) run.

    Args:
        shard: which rows.
        weight_VD: their values.
        ends: whether its chunk ends the pipeline.
        tied: whether the embedding of the first stage owns the rows; the shard then has no parameter.

    Attributes:
        shard: as given.
        tied: as given.
    """

    weight: Tensor

    def __init__(self, shard: VocabShard, weight_VD: Tensor, *, ends: bool, tied: bool) -> None:
        super().__init__()
        self.shard = shard
        self.tied = tied
        self._ends = ends
        self._is_expected = False
        self._made: list[StandIn] = []
        if tied:
            self.register_buffer("weight", weight_VD, persistent=False)
        else:
            self.weight = _as_megatron_has_it(nn.Parameter(weight_VD))

    def forward(self, hidden_sbD: Tensor, weight: Any = None, runtime_gather_output: Any = None) -> tuple[Tensor, None]:
        """Return what would have been multiplied, as the output, and no bias.

        Raises:
            ConfigError: the model is called by itself, and would return that as logits.
        """
        if self._ends and not self._is_expected:
            raise ConfigError(
                f"model: its output layer is split ({OPTION}), so only forward_step_func can call it, in a call of the "
                "forward-backward function"
            )
        return hidden_sbD, None

    def losses(self, labels_bs: Tensor, hidden_sbD: Tensor) -> Tensor:
        """Return what stands in for the losses of ``labels_bs``."""
        losses_bs = torch.full(labels_bs.shape, torch.nan, dtype=torch.float32, device=hidden_sbD.device)
        losses_bs.requires_grad_(torch.is_grad_enabled())
        targets_N = labels_bs.transpose(0, 1).reshape(-1).to(torch.int64)
        is_row_N = (targets_N >= 0) & (targets_N < self.shard.vocab_size)
        self._made.append(StandIn(losses_bs, hidden_sbD, torch.where(is_row_N, targets_N, _IGNORED)))
        return losses_bs

    @contextlib.contextmanager
    def expected(self) -> Iterator[list[StandIn]]:
        """Surround a call of ``forward_step_func``; give what the model returned in it."""
        self._is_expected, self._made = True, []
        try:
            yield self._made
        finally:
            self._is_expected, self._made = False, []

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: Any = None
    ) -> dict[str, Any]:
        """Describe the rows for Megatron's distributed checkpoints, which the unsplit model reads, too."""
        if self.tied:
            return {}
        from megatron.core.dist_checkpointing.mapping import ShardedTensor

        replica = (0, 0, metadata["dp_cp_group"].rank())
        rows = (0, self.shard.index, self.shard.num_shards)
        key = f"{prefix}weight"
        tensor = ShardedTensor.from_rank_offsets(
            key, self.weight, *sharded_offsets, rows, replica_id=replica, allow_shape_mismatch=True
        )
        return {key: tensor}


def output_layer_of(chunks: Iterable[nn.Module]) -> OutputLayerShard:
    """Find a rank's shard among its chunks.

    Raises:
        ConfigError: there is none, or more than one.
    """
    found = [module for chunk in chunks for module in chunk.modules() if isinstance(module, OutputLayerShard)]
    if len(found) != 1:
        raise ConfigError(
            f"model: {OPTION} splits the output layer of a GPTModel that is built after pipert is installed; of these "
            f"chunks, {len(found)} have a part of one, and one must"
        )
    return found[0]


def _as_megatron_has_it(weight: nn.Parameter) -> nn.Parameter:
    """Give a weight the marks that those of Megatron's output layers have."""
    from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes

    weight.is_embedding_or_output_parameter = True  # type: ignore[attr-defined]
    weight.allreduce = True  # type: ignore[attr-defined]
    set_tensor_model_parallel_attributes(weight, True, 0, 1)
    return weight
