"""How a GPTModel is built and run with its output layer split over the pipeline (``--pipert-vocab-parallel``).

Each function here stands in for one of Megatron's, of the same name and signature. Every rank's last chunk gets a
shard; the last stage is one of those chunks. The rows are those that the last stage would have been initialised with.

Shapes: D hidden, V rows of a shard.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipert.errors import ConfigError
from pipert.kernels import VocabShard
from pipert.megatron import placement
from pipert.megatron.group_device import group_device
from pipert.megatron.output_layer import OPTION, OutputLayerShard
from pipert.megatron.rebind import Rebinding, rebind


def patch() -> Rebinding:
    """Put all of them in place. To be called before the model is built."""
    from megatron.core.models.gpt import GPTModel

    finalize: Any = importlib.import_module("megatron.core.distributed.finalize_model_grads")
    allreduce = finalize._allreduce_word_embedding_grads
    methods = {
        "__init__": _init,
        "_postprocess": _postprocess,
        "compute_language_model_loss": _compute_language_model_loss,
        "tie_embeddings_and_output_weights_state_dict": _tie_embeddings_and_output_weights_state_dict,
    }
    own = {name: vars(GPTModel).get(name) for name in methods}
    for name, make in methods.items():
        original = getattr(GPTModel, name)
        setattr(GPTModel, name, functools.wraps(original)(make(original)))
    rebound = rebind(allreduce, functools.wraps(allreduce)(_allreduce_word_embedding_grads(allreduce)))

    def undo() -> None:
        rebound.undo()
        for name, original in own.items():
            if original is None:
                delattr(GPTModel, name)
            else:
                setattr(GPTModel, name, original)

    return Rebinding(undo)


def _init(original: Callable[..., None]) -> Callable[..., None]:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        num_chunks = self.config.virtual_pipeline_model_parallel_size
        is_last_chunk = num_chunks is None or self.vp_stage == num_chunks - 1
        is_split_already = self.config.tensor_model_parallel_size > 1  # which the first call refuses, by name
        if self.config.pipeline_model_parallel_size > 1 and is_last_chunk and not is_split_already:
            _split(self)

    return __init__


def _postprocess(original: Callable[..., Any]) -> Callable[..., Any]:
    def _postprocess(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(self, *args, **kwargs)
        return output if self.post_process or not _is_split(self) else self.output_layer(output)[0]

    return _postprocess


def _compute_language_model_loss(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def compute_language_model_loss(self: Any, labels: Tensor, logits: Tensor) -> Tensor:
        if not _is_split(self):
            return original(self, labels, logits)
        losses: Tensor = self.output_layer.losses(labels, logits)
        return losses

    return compute_language_model_loss


def _tie_embeddings_and_output_weights_state_dict(original: Callable[..., None]) -> Callable[..., None]:
    """Leave a tied shard out: the first stage's embedding is in the checkpoint."""

    def tie_embeddings_and_output_weights_state_dict(self: Any, *args: Any, **kwargs: Any) -> None:
        if not _is_split(self):
            original(self, *args, **kwargs)

    return tie_embeddings_and_output_weights_state_dict


def _allreduce_word_embedding_grads(original: Callable[..., None]) -> Callable[..., None]:
    """Do nothing: there is one embedding, which has its gradients already (:mod:`pipert.megatron.tied_shards`)."""

    def _allreduce_word_embedding_grads(model: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        if config.pipeline_model_parallel_size == 1:
            original(model, config, *args, **kwargs)

    return _allreduce_word_embedding_grads


def _is_split(model: Any) -> bool:
    return isinstance(getattr(model, "output_layer", None), OutputLayerShard)


def _split(model: Any) -> None:
    """Put this rank's shard in the place of the output layer. Collective over the pipeline's ranks."""
    config, group = model.config, model.pg_collection.pp
    shard = VocabShard(model.vocab_size, group.size(), group.rank())
    weight_VD = torch.zeros(shard.size, config.hidden_size, dtype=config.params_dtype, device=group_device(group))
    tied = bool(model.share_embeddings_and_output_weights)
    if not tied:
        _scatter(weight_VD, shard, model.output_layer.weight if model.post_process else None, config, group)
    model.output_layer = OutputLayerShard(shard, weight_VD, ends=model.post_process, tied=tied)


def _scatter(weight_VD: Tensor, shard: VocabShard, whole: Tensor | None, config: Any, group: Any) -> None:
    """Fill ``weight_VD`` with this rank's rows of ``whole``, which the last stage's rank has."""
    if whole is not None and whole.is_meta:
        raise ConfigError(f"model: {OPTION} cuts the weight of the output layer, which has no values on a meta device")
    folds = placement.folds(group.size(), config.virtual_pipeline_model_parallel_size)
    source = dist.get_global_rank(group, 0 if folds else group.size() - 1)
    pieces = None if whole is None else [rows_of(whole, shard, index, weight_VD) for index in range(shard.num_shards)]
    dist.scatter(weight_VD, pieces, src=source, group=group)


def rows_of(whole: Tensor, shard: VocabShard, index: int, like_VD: Tensor) -> Tensor:
    """Return the rows of shard ``index`` of a whole weight, with zeros for padding, as ``like_VD`` is."""
    part = VocabShard(shard.vocab_size, shard.num_shards, index)
    piece = torch.zeros_like(like_VD)
    piece[: part.num_real] = whole.detach()[part.start : part.start + part.num_real]
    return piece
