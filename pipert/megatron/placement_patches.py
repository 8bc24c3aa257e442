"""What of megatron-core decides a chunk's layers and ends, in the placement ``vee``.

Each function here stands in for one of Megatron's, of the same name and signature, and says of which stage a chunk is.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch.distributed as dist

from pipert.megatron import tied
from pipert.megatron.placement import folds, loop_rank, mtp_places, need_chunks, running_chunk
from pipert.megatron.rebind import Rebinding, rebind


def patch() -> Rebinding:
    """Put all of them in place."""
    from megatron.core import parallel_state
    from megatron.core.models.common.language_module.language_module import LanguageModule
    from megatron.core.models.gpt import gpt_layer_specs  # noqa: F401  (binds functions by name)
    from megatron.core.pipeline_parallel import utils
    from megatron.core.transformer import multi_token_prediction, transformer_block, transformer_layer
    from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout as Layout

    # The package binds the function over the module.
    finalize: Any = importlib.import_module("megatron.core.distributed.finalize_model_grads")
    is_vp_last_stage = utils.is_vp_last_stage
    done = [
        _rebind(parallel_state.is_pipeline_first_stage, _is_pipeline_first_stage),
        _rebind(parallel_state.is_pipeline_last_stage, _is_pipeline_last_stage),
        _rebind(parallel_state.is_rank_in_embedding_group, _is_rank_in_embedding_group),
        _rebind(utils.is_pp_last_stage, _is_pp_last_stage),
        _rebind(utils.is_vp_last_stage, _is_vp_last_stage),
        # Here it goes with the rank that get_num_layers_to_build is given, which is the loop's.
        _attribute(transformer_block, "is_vp_last_stage", is_vp_last_stage),
        _rebind(utils.get_pp_last_rank, _get_pp_last_rank),
        _rebind(transformer_block.get_num_layers_to_build, _of_config),
        _rebind(transformer_layer.get_transformer_layer_offset, _of_config),
        _rebind(multi_token_prediction.mtp_on_this_rank, _mtp_on_this_rank),
        _rebind(multi_token_prediction.get_mtp_ranks, _get_mtp_ranks),
        _rebind(finalize._allreduce_word_embedding_grads, tied.allreduce_word_embedding_grads),
        _attribute(Layout, "get_num_layers_to_build", _of_layout(Layout.get_num_layers_to_build)),
        _attribute(Layout, "get_layer_offset", _of_layout(Layout.get_layer_offset)),
        _attribute(LanguageModule, "_is_in_embd_group", tied.is_in_embd_group(LanguageModule._is_in_embd_group)),
        _attribute(
            LanguageModule,
            "setup_embeddings_and_output_layer",
            tied.setup_embeddings_and_output_layer(LanguageModule.setup_embeddings_and_output_layer),
        ),
    ]

    def undo() -> None:
        for each in reversed(done):
            each.undo()

    return Rebinding(undo)


def _rebind(original: Callable[..., Any], make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Rebinding:
    return rebind(original, functools.wraps(original)(make(original)))


def _attribute(owner: Any, name: str, value: Any) -> Rebinding:
    before = getattr(owner, name)
    setattr(owner, name, value)
    return Rebinding(lambda: setattr(owner, name, before))


def _sizes() -> tuple[int, int | None]:
    """Return how many ranks the pipeline has, and how many chunks a rank."""
    from megatron.core import parallel_state

    return (
        parallel_state.get_pipeline_model_parallel_world_size(),
        parallel_state.get_virtual_pipeline_model_parallel_world_size(),
    )


def _rank() -> int:
    from megatron.core import parallel_state

    rank: int = parallel_state.get_pipeline_model_parallel_rank()
    return rank


def _is_pipeline_first_stage(original: Callable[..., bool]) -> Callable[..., bool]:
    def is_pipeline_first_stage(ignore_virtual: bool = True, vp_stage: int | None = None) -> bool:
        num_ranks, num_chunks = _sizes()
        if ignore_virtual and running_chunk() is not None and folds(num_ranks, num_chunks):
            return _rank() == 0 and running_chunk() != need_chunks(num_chunks) - 1
        return original(ignore_virtual, vp_stage)

    return is_pipeline_first_stage


def _is_pipeline_last_stage(original: Callable[..., bool]) -> Callable[..., bool]:
    """Without a chunk, it is of the rank where Megatron has the last stage, and where scripts read losses."""

    def is_pipeline_last_stage(ignore_virtual: bool = True, vp_stage: int | None = None) -> bool:
        num_ranks, num_chunks = _sizes()
        if (ignore_virtual and running_chunk() is None) or not folds(num_ranks, num_chunks):
            return original(ignore_virtual, vp_stage)
        chunk = running_chunk() if ignore_virtual else vp_stage
        assert chunk is not None, "vp_stage must be given with several chunks a rank"
        return _rank() == 0 and chunk == need_chunks(num_chunks) - 1

    return is_pipeline_last_stage


def _is_rank_in_embedding_group(original: Callable[..., bool]) -> Callable[..., bool]:
    def is_rank_in_embedding_group(ignore_virtual: bool = True, vp_stage: int | None = None) -> bool:
        from megatron.core import parallel_state

        if ignore_virtual or not folds(*_sizes()):
            return original(ignore_virtual, vp_stage)
        return bool(
            parallel_state.is_pipeline_first_stage(False, vp_stage)
            or parallel_state.is_pipeline_last_stage(False, vp_stage)
        )

    return is_rank_in_embedding_group


def _is_pp_last_stage(original: Callable[..., bool]) -> Callable[..., bool]:
    """Say yes where scripts read losses, as in the loop, and where the last stage is.

    Whether a chunk is last is asked as ``is_pp_last_stage(group) and is_vp_last_stage(chunk, number)``; the second is
    true only where the last stage is.
    """
    from megatron.core.utils import get_pg_rank, get_pg_size

    def is_pp_last_stage(pp_group: dist.ProcessGroup) -> bool:
        return original(pp_group) or (get_pg_rank(pp_group) == 0 and folds(get_pg_size(pp_group), _sizes()[1]))

    return is_pp_last_stage


def _is_vp_last_stage(original: Callable[..., bool]) -> Callable[..., bool]:
    def is_vp_last_stage(vp_stage: int, vp_size: int | None) -> bool:
        is_last = original(vp_stage, vp_size)
        if vp_size is None or not is_last or not folds(_sizes()[0], vp_size):
            return is_last
        return _rank() == 0

    return is_vp_last_stage


def _get_pp_last_rank(original: Callable[..., int]) -> Callable[..., int]:
    def get_pp_last_rank(pp_group: dist.ProcessGroup) -> int:
        if folds(pp_group.size(), _sizes()[1]):
            return dist.get_global_rank(pp_group, 0)
        return original(pp_group)

    return get_pp_last_rank


def _of_config(original: Callable[..., int]) -> Callable[..., int]:
    """Ask for the loop's rank of the chunk's stage."""

    def of_config(config: Any, vp_stage: int | None = None, pp_rank: int | None = None) -> int:
        num_ranks = config.pipeline_model_parallel_size
        if num_ranks == 1 or config.pipeline_model_parallel_layout is not None:  # a layout does it itself
            return original(config, vp_stage, pp_rank)
        need_chunks(config.virtual_pipeline_model_parallel_size)
        rank = _rank() if pp_rank is None else pp_rank
        return original(config, vp_stage, rank if vp_stage is None else loop_rank(rank, vp_stage, num_ranks))

    return of_config


def _of_layout(original: Callable[..., int]) -> Callable[..., int]:
    """Ask for the loop's rank of the chunk's stage; a layout lists its stages in that order."""

    @functools.wraps(original)
    def of_layout(self: Any, layer_type: Any = None, vp_stage: int | None = None, pp_rank: int | None = None) -> int:
        from megatron.core.transformer.enums import LayerType

        if self.pipeline_model_parallel_size > 1:
            need_chunks(_sizes()[1])
        rank = _rank() if pp_rank is None else pp_rank
        if vp_stage is not None:
            rank = loop_rank(rank, vp_stage, self.pipeline_model_parallel_size)
        return original(self, LayerType.decoder if layer_type is None else layer_type, vp_stage, rank)

    return of_layout


def _mtp_on_this_rank(original: Callable[..., bool]) -> Callable[..., bool]:
    def mtp_on_this_rank(config: Any, ignore_virtual: bool | None = True, vp_stage: int | None = None) -> bool:
        num_ranks, num_chunks = _sizes()
        if config.mtp_num_layers is None or num_ranks == 1:
            return original(config, ignore_virtual, vp_stage)
        chunks = range(need_chunks(num_chunks)) if ignore_virtual or vp_stage is None else [vp_stage]
        return any(_rank() == rank and chunk in chunks for rank, chunk in mtp_places(config))

    return mtp_on_this_rank


def _get_mtp_ranks(original: Callable[..., list[int]]) -> Callable[..., list[int]]:
    def get_mtp_ranks(pp_ranks: Sequence[int], config: Any) -> list[int]:
        if config.mtp_num_layers is None or len(pp_ranks) == 1:
            return original(pp_ranks, config)
        return sorted({pp_ranks[rank] for rank, _ in mtp_places(config)})

    return get_mtp_ranks
