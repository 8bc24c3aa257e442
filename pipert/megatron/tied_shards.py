"""Shards of an output layer that is tied to the input embedding.

The first stage's embedding is the one parameter. Its rows go out to the shards when a step begins; the shards'
gradients come back when it ends, before any are reduced over data-parallel replicas.

Shapes: D hidden, V rows of a shard.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipert.kernels import VocabShard
from pipert.kernels.accumulation import accumulation_dtype
from pipert.megatron.output_layer_patches import rows_of


class TiedShards:
    """One rank's end of it. All methods are collective over the pipeline's ranks.

    Args:
        shard: which rows are this rank's.
        weight_VD: them.
        first_chunk: this rank's.
        group: the pipeline's ranks; it moves tensors of the model's device.
    """

    def __init__(
        self, shard: VocabShard, weight_VD: nn.Parameter, first_chunk: nn.Module, group: dist.ProcessGroup
    ) -> None:
        self._shard = shard
        self._weight_VD = weight_VD
        self._group = group
        self._first_chunk = first_chunk
        self._embedding = _embedding_of(first_chunk) if group.rank() == 0 else None

    def refresh(self) -> None:
        """Begin a step: bring the embedding's rows to the shards, whose gradients are 0."""
        weight_VD = self._weight_VD
        dtype = accumulation_dtype(weight_VD.dtype)
        weight_VD.main_grad = torch.zeros_like(weight_VD, dtype=dtype)  # type: ignore[attr-defined]
        if self._embedding is None:
            dist.recv(weight_VD.data, group=self._group, group_src=0)
            return
        _wait_for(self._embedding, self._first_chunk)
        for rank in range(1, self._group.size()):
            dist.send(rows_of(self._embedding, self._shard, rank, weight_VD.data), group=self._group, group_dst=rank)
        weight_VD.data.copy_(rows_of(self._embedding, self._shard, 0, weight_VD.data))

    def collect(self) -> None:
        """End a step: add the shards' gradients to the embedding's."""
        part_VD: Tensor = self._weight_VD.main_grad  # type: ignore[attr-defined]
        if self._embedding is None:
            dist.send(part_VD, group=self._group, group_dst=0)
            return
        for rank in range(self._group.size()):
            if rank > 0:
                dist.recv(part_VD, group=self._group, group_src=rank)
            if self._embedding.requires_grad:
                rows = VocabShard(self._shard.vocab_size, self._shard.num_shards, rank)
                _gradient(self._embedding)[rows.start : rows.start + rows.num_real] += part_VD[: rows.num_real]


def _embedding_of(first_chunk: nn.Module) -> nn.Parameter:
    from megatron.core.utils import get_attr_wrapped_model

    model = get_attr_wrapped_model(first_chunk, "pre_process", return_model_obj=True)
    weight: nn.Parameter = model.shared_embedding_or_output_weight()
    return weight


def _wait_for(parameter: nn.Parameter, chunk: Any) -> None:
    """Do what Megatron's hook on the embedding would do before its forward: gather what replicas have of it."""
    if getattr(chunk, "use_forward_hook", False) and chunk.remove_forward_pre_hook_handles:
        chunk.param_to_bucket_group[parameter].finish_param_sync(
            skip_next_bucket_dispatch=chunk.ddp_config.align_param_gather
            or chunk.overlap_param_gather_with_optimizer_step
        )


def _gradient(parameter: nn.Parameter) -> Tensor:
    main_grad: Tensor | None = getattr(parameter, "main_grad", None)
    if main_grad is not None:
        return main_grad
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
