"""One call of the forward-backward function: its arguments, and what they imply."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pipert.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Groups:
    """The process groups of a call.

    Attributes:
        pipeline: the pipeline's ranks.
        collection: what ``finalize_model_grads_func`` gets.
    """

    pipeline: torch.distributed.ProcessGroup
    collection: Any


@dataclass(frozen=True, slots=True)
class Call:
    """The arguments, as Megatron documents them in ``get_forward_backward_func``, with lists made of single things.

    Attributes:
        config: the model's, from its first chunk.
        chunks: the model chunks of this rank.
        data_iterators: one per chunk.
        groups: the process groups.
        splits_vocabulary: whether the output layer is split over the pipeline's ranks.
    """

    config: Any
    chunks: tuple[nn.Module, ...]
    data_iterators: tuple[Iterator[Any] | None, ...]
    groups: Groups
    forward_step_func: Callable[..., Any]
    num_microbatches: int
    seq_length: int
    micro_batch_size: int
    forward_only: bool
    collect_non_loss_data: bool
    first_val_step: bool | None
    adjust_tensor_shapes_fn: Callable[..., Any] | None
    force_all_reduce: bool
    splits_vocabulary: bool

    @property
    def interleaved(self) -> bool:
        """Whether a rank has several chunks."""
        return len(self.chunks) > 1

    @property
    def context_parallel_size(self) -> int:
        """How many ranks share a sequence."""
        size: int = self.groups.collection.cp.size()
        return size

    def is_first_microbatch(self, microbatch: int) -> bool:
        """Whether a chunk is told that weights may be cast anew: its first one, in validation once per phase."""
        first = microbatch == 0
        if self.first_val_step is not None and self.forward_only:
            return self.first_val_step and first
        return first


def chunks_of(model: Any) -> tuple[nn.Module, ...]:
    """Return the model chunks of this rank.

    Raises:
        ConfigError: a chunk is no module, or lacks the hooks that a pipeline stage needs.
    """
    from megatron.core.utils import get_attr_wrapped_model

    chunks = tuple(model) if isinstance(model, Sequence) else (model,)
    for index, chunk in enumerate(chunks):
        if not isinstance(chunk, nn.Module):
            raise ConfigError(f"model: chunk {index} is a {type(chunk).__name__}, not a module")
        for hook in ("set_input_tensor", "config"):
            try:
                get_attr_wrapped_model(chunk, hook)
            except RuntimeError:
                raise ConfigError(
                    f"model: chunk {index}, a {type(chunk).__name__}, has no {hook}; a pipeline stage is a "
                    "MegatronModule with set_input_tensor"
                ) from None
    return chunks


def iterators_of(data_iterator: Any, num_chunks: int) -> tuple[Iterator[Any] | None, ...]:
    """Return a data iterator per chunk.

    Raises:
        ConfigError: a list of another length.
    """
    iterators = tuple(data_iterator) if isinstance(data_iterator, list) else (data_iterator,)
    if len(iterators) != num_chunks:
        raise ConfigError(f"data_iterator: {num_chunks} model chunks need a list of as many, not {len(iterators)}")
    return iterators


def groups_of(p2p_communicator: Any, collection: Any) -> Groups:
    """Return the process groups: those that are given, else those of ``parallel_state``.

    Raises:
        ConfigError: one of the two is given without the other, or the communicator is not Megatron's plain one.
    """
    from megatron.core import parallel_state
    from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
    from megatron.core.process_groups_config import ProcessGroupCollection

    if (p2p_communicator is None) != (collection is None):
        raise ConfigError("p2p_communicator and pg_collection: give both or neither")
    if collection is not None:
        if type(p2p_communicator) is not P2PCommunicator:
            raise ConfigError(
                f"p2p_communicator is a {type(p2p_communicator).__name__}; pipert moves tensors itself, between the "
                "ranks of a plain P2PCommunicator's group"
            )
        missing = [name for name in ("tp", "cp", "embd", "pos_embd", "pp", "dp_cp") if not hasattr(collection, name)]
        if missing:
            raise ConfigError(f"pg_collection has no {', '.join(missing)}; set what does not exist to None")
        return Groups(p2p_communicator.pp_group, collection)
    collection = ProcessGroupCollection()
    collection.tp = parallel_state.get_tensor_model_parallel_group()
    collection.cp = parallel_state.get_context_parallel_group()
    collection.embd = parallel_state.get_embedding_group(check_initialized=False)
    collection.pos_embd = parallel_state.get_position_embedding_group(check_initialized=False)
    collection.pp = parallel_state.get_pipeline_model_parallel_group()
    collection.dp_cp = parallel_state.get_data_parallel_group(with_context_parallel=True, partial_data_parallel=False)
    return Groups(collection.pp, collection)
