"""The cases behind the table of Megatron's contract: item → a call that uses it."""

from pathlib import Path
from types import SimpleNamespace

import torch
from megatron.core.pipeline_parallel import schedules
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from toy import MICROBATCHES, Case


class OtherCommunicator(P2PCommunicator):
    pass


def noted_drain(toy):
    """Let Megatron's deferred weight gradients, whose kernel is for GPUs, be noted instead of computed."""
    schedules.drain_embedding_wgrad_compute = lambda config, activations, *rest: toy.note("drain", list(activations))
    return True


CASES = {
    "forward_step_func": Case(),
    "data_iterator": Case(num_chunks=2),
    "model": Case(num_chunks=3),
    "num_microbatches": Case(num_microbatches=(4, 6, 2, 4)),
    "forward_only": Case(evaluates=True),
    "forward_only, interleaved": Case(evaluates=True, num_chunks=2, dropout=0.0),
    "collect_non_loss_data": Case(call={"collect_non_loss_data": True, "forward_only": True}),
    "first_val_step": Case(call={"first_val_step": True, "forward_only": True}),
    "first_val_step, later": Case(call={"first_val_step": False, "forward_only": True}),
    "adjust_tensor_shapes_fn, one chunk": Case(call={"adjust_tensor_shapes_fn": lambda recv, send: (recv, send)}),
    "p2p_communicator, pg_collection": Case(groups=True),
    "force_all_reduce": Case(call={"force_all_reduce": True}),
    "stage outputs without gradient": Case(frozen=(0,)),
    "loss function with three values": Case(loss_values=3),
    "no loss function": Case(loss_values=0, call={"forward_only": True}),
    "no_sync_func": Case(config={"no_sync_func": lambda toy: toy.no_sync}),
    "no_sync_func, a list": Case(config={"no_sync_func": lambda toy: [toy.no_sync]}, num_chunks=2),
    "grad_sync_func": Case(
        config={"no_sync_func": lambda toy: toy.no_sync, "grad_sync_func": lambda toy: toy.grad_sync(0)},
        schedule="1f1b",
    ),
    "grad_sync_func, per chunk": Case(
        config={
            "no_sync_func": lambda toy: toy.no_sync,
            "grad_sync_func": lambda toy: [toy.grad_sync(0), toy.grad_sync(1)],
        },
        num_chunks=2,
        schedule="interleaved-zb",
    ),
    "param_sync_func": Case(
        config={"param_sync_func": lambda toy: [toy.param_sync(chunk) for chunk in range(3)]}, num_chunks=3
    ),
    "finalize_model_grads_func": Case(num_chunks=2),
    "calculate_per_token_loss": Case(loss_values=3, config={"calculate_per_token_loss": True}),
    "grad_scale_func": Case(config={"grad_scale_func": lambda toy: lambda loss: loss * 1024}),
    "MoE and MTP loss scales": Case(
        config={"num_moe_experts": 2, "grad_scale_func": lambda toy: lambda loss: loss * 512}
    ),
    "enable_autocast, autocast_dtype": Case(config={"enable_autocast": True, "autocast_dtype": torch.bfloat16}),
    "enable_autocast, split": Case(
        config={"enable_autocast": True, "autocast_dtype": torch.bfloat16}, schedule="zb-h1"
    ),
    "timers": Case(config={"timers": lambda toy: toy.timers}),
    "barrier_with_L1_time": Case(config={"timers": lambda toy: toy.timers, "barrier_with_L1_time": False}),
    # Megatron's own lets go of what gloo still sends.
    "deallocate_pipeline_outputs": Case(config={"deallocate_pipeline_outputs": lambda toy: toy.is_ours}),
    "variable_seq_lengths": Case(lengths=(4, 6, 2, 8)),
    "microbatch_group_size_per_vp_stage": Case(config={"microbatch_group_size_per_vp_stage": 4}, num_chunks=2),
    "num_microbatches_with_partial_activation_checkpoints": Case(
        config={"num_microbatches_with_partial_activation_checkpoints": 1}, num_microbatches=(6, 6)
    ),
    "recompute_granularity": Case(
        config={"num_microbatches_with_partial_activation_checkpoints": 1, "recompute_granularity": "full"},
        schedule="zb-h1",
    ),
    "defer_embedding_wgrad_compute": Case(config={"defer_embedding_wgrad_compute": noted_drain}),
    "overlap_p2p_comm": Case(config={"overlap_p2p_comm_warmup_flush": True}, num_chunks=2),
    "zb-1p": Case(schedule="zb-1p", dropout=0.0),
    "auto": Case(schedule="auto", num_chunks=2, dropout=0.0),
    "breadth-first": Case(schedule="breadth-first", num_chunks=2, dropout=0.0),
}
"""Run by Megatron's own function and by pipert's: what is returned, gradients and events must be the same."""

PLAIN = {
    "tuples": Case(arrange=lambda y: (y, 2 * y), dropout=0.0),
    "dictionaries": Case(arrange=lambda y: {"one": y, "two": 2 * y}, dropout=0.0, schedule="zb-1p"),
}
"""Run by pipert's function and by a plain loop: Megatron's own does not carry them."""

REFUSED = {
    "adjust_tensor_shapes_fn": Case(call={"adjust_tensor_shapes_fn": lambda recv, send: (recv, send)}, num_chunks=2),
    "overlap_moe_expert_parallel_comm": Case(config={"overlap_moe_expert_parallel_comm": True}),
    "fine_grained_activation_offloading": Case(config={"fine_grained_activation_offloading": True}),
    "cpu_offloading": Case(config={"cpu_offloading": True}),
    "cuda_graph_impl": Case(config={"cuda_graph_impl": "local"}),
    "hybrid_context_parallel": Case(config={"hybrid_context_parallel": True}),
    "encoder_and_decoder models": Case(model_type=SimpleNamespace(name="encoder_and_decoder")),
    "another communicator": Case(
        call={"p2p_communicator": OtherCommunicator.__new__(OtherCommunicator), "pg_collection": SimpleNamespace()}
    ),
    "one of the groups": Case(call={"pg_collection": SimpleNamespace()}),
    "a group that is missing": Case(
        call={"p2p_communicator": P2PCommunicator.__new__(P2PCommunicator), "pg_collection": SimpleNamespace()}
    ),
    "a chunk without the hooks": Case(without_hook=True),
    "too few data iterators": Case(num_chunks=2, call={"data_iterator": [iter(())]}),
    "one value of the loss function": Case(loss_values=1),
    "no loss to begin at": Case(call={"collect_non_loss_data": True}),
    "no tensor to begin at": Case(loss_values=0, arrange=lambda y: (y, y)),
    "a forward_step_func that raises": Case(raises=(1, 2), schedule="zb-1p"),
    "an unknown schedule": Case(schedule="zb-7"),
    "a plan for other sizes": Case(schedule=str(Path(__file__).parent / "three_ranks.csv")),
    "a schedule with replicas": Case(schedule="chimera"),
    "a group size": Case(config={"microbatch_group_size_per_vp_stage": 3}, num_chunks=2),
    "a group size above the microbatches": Case(
        config={"microbatch_group_size_per_vp_stage": MICROBATCHES + 1}, num_chunks=2
    ),
}
"""Refused, each by both ranks, with a message that test_megatron_contract.py looks at."""
