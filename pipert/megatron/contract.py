"""Megatron's contract, item by item: what of it is honoured, what is refused by name, and what does not apply."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pipert.errors import ConfigError
from pipert.megatron.call import Call
from pipert.megatron.output_layer import OPTION, OutputLayerShard

Verdict = Literal["honoured", "refused", "not applicable"]


@dataclass(frozen=True, slots=True)
class Item:
    """One item of the contract.

    Attributes:
        name: an argument of the call, or an option of the model's configuration.
        verdict: what pipert does about it.
        note: how, or why not.
        is_used: for what is refused, whether a call asks for it.
    """

    name: str
    verdict: Verdict
    note: str
    is_used: Callable[[Call], Any] | None = None


def _option(name: str, verdict: Verdict, note: str) -> Item:
    """Return an item for an option that asks for something where it is set."""
    return Item(name, verdict, note, lambda call: getattr(call.config, name, None))


def _with_vocab_parallel(name: str, note: str, is_used: Callable[[Call], Any]) -> Item:
    """Return an item that is refused where the output layer is split."""
    return Item(f"{name} with {OPTION}", "refused", note, lambda call: call.splits_vocabulary and is_used(call))


def _reduces_tied_early(call: Call) -> bool:
    overlaps = getattr(getattr(call.chunks[0], "ddp_config", None), "overlap_grad_reduce", False)
    shards = (module for chunk in call.chunks for module in chunk.modules() if isinstance(module, OutputLayerShard))
    return call.config.no_sync_func is None and overlaps and any(shard.tied for shard in shards)


def _is_encoder_and_decoder(call: Call) -> bool:
    from megatron.core.utils import get_model_type

    return getattr(get_model_type(call.chunks[0]), "name", "") == "encoder_and_decoder"


def _honoured(name: str, note: str) -> Item:
    return Item(name, "honoured", note)


def _not_applicable(name: str, note: str) -> Item:
    return Item(name, "not applicable", note)


CONTRACT = (
    _honoured("forward_step_func", "called once per microbatch and chunk, with the third argument where asked for"),
    _honoured("data_iterator", "one, or a list with one per chunk; each chunk takes microbatches in ascending order"),
    _honoured("model", "one chunk, or a list; each with `set_input_tensor`, wrapped or not"),
    _honoured("num_microbatches", "may change from call to call; each number has a plan of its own"),
    _not_applicable(
        "seq_length, micro_batch_size, decoder_seq_length",
        f"shapes travel with the tensors; with `{OPTION}` all ranks go by the first two",
    ),
    _honoured("forward_only", "all forwards, without gradients, on the same placement"),
    _honoured("collect_non_loss_data", "the loss function is called with `non_loss_data=True`"),
    _honoured("first_val_step", "decides `set_is_first_microbatch` in validation"),
    Item(
        "adjust_tensor_shapes_fn",
        "refused",
        "with several chunks, as in Megatron; with one, shapes travel with the tensors and nothing is adjusted",
        lambda call: call.adjust_tensor_shapes_fn is not None and call.interleaved,
    ),
    _honoured("p2p_communicator, pg_collection", "both or neither; the ranks of a plain `P2PCommunicator`'s group"),
    _honoured("force_all_reduce", "handed to `finalize_model_grads_func`"),
    _honoured("stage outputs", "a tensor, or a tuple, list or dict of tensors; with or without gradient"),
    _honoured("loss function", "two or three values, or none (`loss_func=None`)"),
    _honoured("no_sync_func", "a function or a list; left at the op after which a chunk has all of its gradients"),
    _honoured("grad_sync_func", "a function or one per chunk; called at the end of that op"),
    _honoured("param_sync_func", "with several chunks: the first two at the start, each further one a chunk ahead"),
    _honoured("finalize_model_grads_func", "called at the end, with the number of tokens where the loss is per token"),
    _honoured("calculate_per_token_loss", "tokens are counted on the last stage"),
    _honoured("grad_scale_func", "scales each microbatch's loss, when its backward begins"),
    _honoured("MoE and MTP loss scales", "set per microbatch, by Megatron's own `forward_step`"),
    _honoured("set_is_first_microbatch, set_current_microbatch", "called, by Megatron's own `forward_step`"),
    _honoured("enable_autocast, autocast_dtype", "forwards run under autocast"),
    _honoured("timers", "`forward-backward`, `forward-compute` and `backward-compute` (B, I and W)"),
    _honoured("barrier_with_L1_time", "as the timers have it"),
    _honoured("deallocate_pipeline_outputs", "always: an output is let go when it is sent, its graph stays"),
    _honoured("variable_seq_lengths", "always: headers of host memory; no device waits for them"),
    _honoured("microbatch_group_size_per_vp_stage", "by `interleaved`; other schedules have their own order"),
    _honoured("num_microbatches_with_partial_activation_checkpoints", "by the plan's order of forwards"),
    _honoured("recompute_granularity", "reentrant checkpoints: such a stage's full backward runs at I"),
    _honoured("defer_embedding_wgrad_compute", "finished after the last op, before gradients are finalized"),
    _honoured("gradient_accumulation_fusion", "weight gradients go into `main_grad`, at W where the backward is split"),
    _honoured("share_embeddings_and_output_weights", "through `finalize_model_grads_func`"),
    _honoured("pipeline_model_parallel_layout", "the chunks come from it; placements other than the loop read it, too"),
    _honoured("sequence_parallel, context parallelism, tensor parallelism", "within a stage, by Megatron's own layers"),
    _not_applicable(
        "overlap_p2p_comm, overlap_p2p_comm_warmup_flush, batch_p2p_comm, batch_p2p_sync, use_ring_exchange_p2p",
        "pipert moves tensors itself, always beside compute",
    ),
    _option("overlap_moe_expert_parallel_comm", "refused", "Megatron runs a forward and a backward as one op for it"),
    _honoured("delay_wgrad_compute", "weight gradients that a layer puts off are computed at W, or at the end of B"),
    _option("fine_grained_activation_offloading", "refused", "its buffers follow Megatron's own order of microbatches"),
    _option("cpu_offloading", "refused", "its buffers follow Megatron's own order of microbatches"),
    Item(
        "cuda_graph_impl",
        "refused",
        "graphs of layers are captured for Megatron's own order of microbatches",
        lambda call: getattr(call.config, "cuda_graph_impl", None) not in (None, "none"),
    ),
    _option("hybrid_context_parallel", "refused", "Megatron has it without a pipeline only"),
    _with_vocab_parallel(
        "variable_seq_lengths",
        "every rank receives the last stage's hidden states, and knows their size from the call's arguments",
        lambda call: call.config.variable_seq_lengths,
    ),
    _with_vocab_parallel(
        "tensor and context parallelism",
        "the output layer is split over the pipeline's ranks alone",
        lambda call: call.config.tensor_model_parallel_size > 1 or call.context_parallel_size > 1,
    ),
    _with_vocab_parallel(
        "mtp_num_layers",
        "heads of multi-token prediction use the whole output layer",
        lambda call: getattr(call.config, "mtp_num_layers", None),
    ),
    _with_vocab_parallel(
        "tied embeddings and overlap_grad_reduce without no_sync_func",
        "the embedding's gradients must be held back until all ranks have given their parts",
        _reduces_tied_early,
    ),
    _with_vocab_parallel(
        "defer_embedding_wgrad_compute",
        "the schedule puts off the output layer's weight gradients itself",
        lambda call: call.config.defer_embedding_wgrad_compute,
    ),
    _with_vocab_parallel(
        "enable_autocast",
        "the split output layer runs in the type of its weight",
        lambda call: call.config.enable_autocast,
    ),
    _with_vocab_parallel(
        "Megatron's FSDP",
        "it would shard the shards",
        lambda call: getattr(getattr(call.chunks[0], "ddp_config", None), "use_megatron_fsdp", False),
    ),
    Item("encoder_and_decoder models", "refused", "their stages take two kinds of input", _is_encoder_and_decoder),
)
"""Every item, in the order of the documentation's table."""


def check(call: Call) -> None:
    """Refuse what cannot be honoured.

    Raises:
        ConfigError: with the name of the item.
    """
    for item in CONTRACT:
        if item.is_used is not None and item.is_used(call):
            raise ConfigError(f"{item.name} is not supported by pipert's drop-in engine: {item.note}")
