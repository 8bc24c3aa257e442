"""Trains a small GPT with megatron-core, in the shape of Megatron's own scripts.

    torchrun --nproc-per-node 4 tests/megatron/pretrain_gpt.py --pipeline-model-parallel-size 4

It knows nothing of pipert. On a machine without CUDA it runs on CPUs over gloo (cpu_shim.py).
"""

import os
import time
from functools import partial

import arguments
import cpu_shim
import dump
import torch
import torch.distributed as dist
from data import Batches, open_dataset
from megatron.core import parallel_state as mpu
from megatron.core import pipeline_parallel, tensor_parallel
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.enums import ModelType
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.transformer.transformer_config import TransformerConfig


def transformer_config(args):
    config = TransformerConfig(
        num_layers=args.num_layers,
        hidden_size=args.hidden_size,
        num_attention_heads=args.num_attention_heads,
        tensor_model_parallel_size=args.tensor_model_parallel_size,
        pipeline_model_parallel_size=args.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=args.virtual_pipeline_model_parallel_size,
        pipeline_model_parallel_layout=args.pipeline_model_parallel_layout,
        microbatch_group_size_per_vp_stage=args.microbatch_group_size_per_virtual_pipeline_stage,
        expert_model_parallel_size=args.expert_model_parallel_size,
        sequence_parallel=args.sequence_parallel,
        num_moe_experts=args.num_experts,
        moe_aux_loss_coeff=0.01 if args.num_experts else 0.0,
        attention_dropout=args.attention_dropout,
        hidden_dropout=args.hidden_dropout,
        recompute_granularity=args.recompute_granularity,
        recompute_method=args.recompute_method,
        recompute_num_layers=args.recompute_num_layers,
        variable_seq_lengths=args.variable_seq_lengths,
        calculate_per_token_loss=args.calculate_per_token_loss,
        moe_token_dispatcher_type="alltoall",
        add_bias_linear=args.num_experts is None,
        pipeline_dtype=torch.float32,
        overlap_p2p_comm=args.virtual_pipeline_model_parallel_size is not None,
        batch_p2p_comm=args.virtual_pipeline_model_parallel_size is None,
        deallocate_pipeline_outputs=torch.cuda.is_available(),  # gloo still reads them
        bias_dropout_fusion=False,
        gradient_accumulation_fusion=False,
    )
    return config


def model_provider(args, config, pre_process=True, post_process=True, vp_stage=None):
    return GPTModel(
        config=config,
        transformer_layer_spec=get_gpt_layer_local_spec(num_experts=args.num_experts, moe_grouped_gemm=False),
        vocab_size=args.vocab_size,
        max_sequence_length=args.seq_length,
        pre_process=pre_process,
        post_process=post_process,
        parallel_output=True,
        share_embeddings_and_output_weights=not args.untie_embeddings_and_output_weights,
        position_embedding_type="rope",
        vp_stage=vp_stage,
    )


def get_model(args, config):
    chunks = []
    virtual = args.virtual_pipeline_model_parallel_size
    for stage in range(virtual or 1):
        vp_stage = None if virtual is None else stage
        chunk = model_provider(
            args,
            config,
            pre_process=mpu.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage),
            post_process=mpu.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage),
            vp_stage=vp_stage,
        )
        chunk.model_type = ModelType.encoder_or_decoder
        for parameter in chunk.parameters():
            tensor_parallel.set_defaults_if_not_set_tensor_model_parallel_attributes(parameter)
        chunks.append(chunk.cuda())
    ddp = DistributedDataParallelConfig(
        use_distributed_optimizer=args.use_distributed_optimizer,
        overlap_grad_reduce=args.overlap_grad_reduce,
        overlap_param_gather=args.overlap_param_gather,
        bucket_size=40_000 if args.overlap_grad_reduce else None,
    )
    return [DistributedDataParallel(config, ddp, chunk, disable_bucketing=i > 0) for i, chunk in enumerate(chunks)]


def loss_func(args, loss_mask, output):
    losses = output.float() * loss_mask
    total, num_tokens = losses.sum(), loss_mask.sum().to(torch.int)
    report = {"lm loss": torch.stack([total.detach(), num_tokens.float()])}
    if args.calculate_per_token_loss:
        return total, num_tokens, report
    return total / num_tokens, report


def forward_step(args, data_iterator, model):
    tokens = next(data_iterator).cuda()
    tokens, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    length = tokens.shape[1]
    mask = torch.ones(1, 1, length, length, dtype=torch.bool, device=tokens.device).triu(1)
    output = model(tokens, positions, mask, labels=labels)
    return output, partial(loss_func, args, torch.ones_like(labels, dtype=torch.float))


def reduced_loss(data):
    """Return the mean loss over the tokens of all replicas; None on ranks without the last stage."""
    if not data:
        return None
    total = torch.stack([part["lm loss"] for part in data]).sum(dim=0)
    dist.all_reduce(total, group=mpu.get_data_parallel_group())
    return (total[0] / total[1]).item()


def main():
    args = arguments.parse()
    cpu_shim.install()
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    mpu.initialize_model_parallel(
        tensor_model_parallel_size=args.tensor_model_parallel_size,
        pipeline_model_parallel_size=args.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=args.virtual_pipeline_model_parallel_size,
        expert_model_parallel_size=args.expert_model_parallel_size,
    )
    torch.manual_seed(args.seed + 100 * mpu.get_pipeline_model_parallel_rank())
    tensor_parallel.model_parallel_cuda_manual_seed(args.seed)

    config = transformer_config(args)
    model = get_model(args, config)
    dump.initialise(model, args.seed, args.vocab_size)
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            lr=args.lr,
            clip_grad=args.clip_grad,
            use_distributed_optimizer=args.use_distributed_optimizer,
            overlap_param_gather=args.overlap_param_gather,
            params_dtype=torch.float32,
        ),
        model,
    )
    config.finalize_model_grads_func = finalize_model_grads
    config.grad_scale_func = optimizer.scale_loss
    config.no_sync_func = [chunk.no_sync for chunk in model] if len(model) > 1 else model[0].no_sync
    if args.overlap_grad_reduce:
        sync = [chunk.start_grad_sync for chunk in model]
        config.grad_sync_func = None if len(model) == 1 else sync
    if args.overlap_param_gather and len(model) > 1:
        config.param_sync_func = [chunk.start_param_sync for chunk in model]

    dataset = open_dataset(args.data_path)
    replica = mpu.get_data_parallel_rank()
    train = [Batches(dataset, args, replica, "train") for _ in model]
    valid = [Batches(dataset, args, replica, "valid") for _ in model]
    num_microbatches = args.global_batch_size // (args.micro_batch_size * mpu.get_data_parallel_world_size())
    forward_backward = pipeline_parallel.get_forward_backward_func()

    def run(iterators, forward_only):
        return forward_backward(
            forward_step_func=partial(forward_step, args),
            data_iterator=iterators,
            model=model,
            num_microbatches=num_microbatches,
            seq_length=args.seq_length,
            micro_batch_size=args.micro_batch_size,
            forward_only=forward_only,
        )

    for iteration in range(1, args.train_iters + 1):
        start = time.perf_counter()
        for chunk in model:
            chunk.zero_grad_buffer()
        optimizer.zero_grad()
        losses = run(train, forward_only=False)
        elapsed_ms = 1000 * (time.perf_counter() - start)
        if args.dump is not None:
            dump.write(args.dump, iteration, model, losses, args.vocab_size)
        _, grad_norm, _ = optimizer.step()
        loss = reduced_loss(losses)
        if loss is not None and mpu.get_data_parallel_rank() == 0 and mpu.get_tensor_model_parallel_rank() == 0:
            print(
                f" iteration {iteration}/{args.train_iters} | elapsed time (ms): {elapsed_ms:.1f} | "
                f"lm loss: {loss:.6f} | grad norm: {grad_norm:.6f}",
                flush=True,
            )
        if args.eval_interval and iteration % args.eval_interval == 0:
            for chunk in model:
                chunk.eval()
            with torch.no_grad():
                evaluated = reduced_loss([part for _ in range(args.eval_iters) for part in run(valid, True)])
            for chunk in model:
                chunk.train()
            if evaluated is not None and mpu.get_data_parallel_rank() == 0:
                print(f" validation loss at iteration {iteration}: {evaluated:.6f}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
