"""Tied embeddings where the first and the last stage are on one rank.

Megatron keeps a copy of the embedding on every stage that uses it, and keeps the copies equal with all-reduces over the
embedding group, which has the first and the last rank. Here both copies are in one process, and the group is not used;
layers of multi-token prediction may have a third copy, on another rank.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipert.errors import ConfigError
from pipert.megatron.placement import folds, mtp_places

_first: list[weakref.ref[nn.Module]] = []
"""The first stage of the model that is being built, on its rank."""


def is_in_embd_group(original: Callable[..., bool]) -> Callable[..., bool]:
    """Stand in for ``LanguageModule._is_in_embd_group``: whether a chunk all-reduces its weight when it is built."""

    @functools.wraps(original)
    def method(self: Any) -> bool:
        return not _on_one_rank(self.config) and original(self)

    return method


def setup_embeddings_and_output_layer(original: Callable[..., None]) -> Callable[..., None]:
    """Stand in for the method of ``LanguageModule``, which makes the copies equal when chunks are built."""

    @functools.wraps(original)
    def method(self: Any) -> None:
        original(self)
        if _on_one_rank(self.config) and _is_shared(self):
            _copy_weights(self)

    return method


def allreduce_word_embedding_grads(original: Callable[..., None]) -> Callable[..., None]:
    """Stand in for ``finalize_model_grads._allreduce_word_embedding_grads``, which sums the gradients of the copies."""

    def allreduce_word_embedding_grads(
        model: Sequence[nn.Module], config: Any, embd_group: Any = None, pp_group: Any = None
    ) -> None:
        if not _on_one_rank(config):
            original(model, config, embd_group, pp_group)
            return
        from megatron.core import parallel_state

        _sum_gradients(model, config, pp_group or parallel_state.get_pipeline_model_parallel_group())

    return allreduce_word_embedding_grads


def _on_one_rank(config: Any) -> bool:
    return folds(config.pipeline_model_parallel_size, config.virtual_pipeline_model_parallel_size)


def _is_shared(module: Any) -> bool:
    return bool(module.share_embeddings_and_output_weights or getattr(module.config, "mtp_num_layers", None))


def _copy_weights(module: Any) -> None:
    group, weight = module.pp_group, module.shared_embedding_or_output_weight()
    if module.pre_process:
        _first[:] = [weakref.ref(module)]
        weight.data = weight.data.cuda()
        for rank in _remote_copies(module.config):
            dist.send(weight.data, group=group, group_dst=rank)
    elif group.rank() != 0:
        weight.data = weight.data.cuda()
        dist.recv(weight.data, group=group, group_src=0)
    elif getattr(module, "mtp_process", False) or module.share_embeddings_and_output_weights:
        first = _first[0]() if _first else None
        if first is None:
            raise ConfigError("model: the last stage's chunk is built before the first one's; build chunks in order")
        weight.data.copy_(first.shared_embedding_or_output_weight().data)  # type: ignore[operator]


def _sum_gradients(model: Sequence[nn.Module], config: Any, group: dist.ProcessGroup) -> None:
    """Leave in each copy the sum over all; a + b has the bits that an all-reduce over two ranks gives."""
    copies = [grad for grad in map(_grad_of_copy, model) if grad is not None]
    remote = _remote_copies(config)
    if not copies:
        return
    if group.rank() in remote:
        dist.send(copies[0], group=group, group_dst=0)
        dist.recv(copies[0], group=group, group_src=0)
        return
    total, *others = copies
    for other in others:
        total.add_(other)
    for rank in remote:
        part = torch.empty_like(total)
        dist.recv(part, group=group, group_src=rank)
        total.add_(part)
    for rank in remote:
        dist.send(total, group=group, group_dst=rank)
    for other in others:
        other.copy_(total)


def _grad_of_copy(chunk: nn.Module) -> Tensor | None:
    """Return the gradient of a chunk's copy of the embedding; None where it has none, or where that is frozen."""
    from megatron.core.utils import get_attr_wrapped_model

    module = get_attr_wrapped_model(chunk, "pre_process", return_model_obj=True)
    has_copy = (
        module.pre_process
        or getattr(module, "mtp_process", False)
        or (module.post_process and module.share_embeddings_and_output_weights)
    )
    if not has_copy or not _is_shared(module):
        return None
    if chunk.ddp_config.use_megatron_fsdp:  # type: ignore[union-attr]
        raise ConfigError("use_megatron_fsdp shards the tied embeddings; with a V-shaped schedule untie them")
    weight = module.shared_embedding_or_output_weight()
    grad: Tensor | None = getattr(weight, "main_grad", weight.grad)
    return grad


def _remote_copies(config: Any) -> list[int]:
    """Return the ranks of the pipeline that have copies, other than the first."""
    if not getattr(config, "mtp_num_layers", None):
        return []
    return sorted({rank for rank, _ in mtp_places(config)} - {0})
