"""One rank of a pipeline whose steps are run by Megatron's own function and by pipert's in turn, and timed.

Started by torchrun with one argument, a JSON object: ``kind`` ("real": a small GPT; "timed": chunks that sleep a
profile), ``steps``, and ``runs``, a list of [schedule (null: Megatron's own), chunks]. The first rank prints a list of
step times in ms, one per run and step: each is that of the slowest rank, from a barrier on.
"""

import json
import os
import sys
import time

import arguments
import cpu_shim
import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from megatron.core.enums import ModelType
from megatron.core.pipeline_parallel import schedules
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import nn

import pipert.megatron
from pipert.stages.timed import sleep_until

F_MS, I_MS, W_MS = 20.0, 20.0, 20.0  # of a rank's whole share


def sleep(ms):
    sleep_until(time.monotonic() + ms / 1000)


class Sleep(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, forward_ms, input_grad_ms):
        ctx.input_grad_ms = input_grad_ms
        sleep(forward_ms)
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        sleep(ctx.input_grad_ms)
        return grad, None, None


class SleepingChunk(MegatronModule):
    """Sleeps F in its forward, I where its input's gradient is computed, W where its parameter's is added."""

    def __init__(self, config, num_chunks):
        super().__init__(config)
        self.weight = nn.Parameter(torch.ones(1))
        self.weight.register_hook(lambda grad: sleep(W_MS / num_chunks))
        self.num_chunks, self.given = num_chunks, None
        self.model_type = ModelType.encoder_or_decoder

    def set_input_tensor(self, tensors):
        self.given = tensors[0]

    def forward(self, x):
        x = (x if self.given is None else self.given) * self.weight
        return Sleep.apply(x, F_MS / self.num_chunks, I_MS / self.num_chunks)


def sleeping_model(num_chunks):
    size = dist.get_world_size()
    config = TransformerConfig(
        num_layers=size * num_chunks,
        hidden_size=4,
        num_attention_heads=1,
        pipeline_model_parallel_size=size,
        virtual_pipeline_model_parallel_size=num_chunks if num_chunks > 1 else None,
        pipeline_dtype=torch.float32,
    )
    model = [SleepingChunk(config, num_chunks) for _ in range(num_chunks)]

    def forward_step(data_iterator, chunk):
        return chunk(torch.ones(1, 1, 4)), lambda output: (output.sum(), {"loss": output.detach().sum()})

    return model, forward_step, {"num_microbatches": 2 * size, "seq_length": 1, "micro_batch_size": 1}


def real_model(num_chunks):
    import pretrain_gpt

    options = ["--num-layers", "8", "--hidden-size", "128", "--seq-length", "128", "--micro-batch-size", "2"]
    options += ["--pipeline-model-parallel-size", str(dist.get_world_size())]
    options += ["--virtual-pipeline-model-parallel-size", str(num_chunks)] if num_chunks > 1 else []
    args = arguments.parse(options)
    tensor_parallel.model_parallel_cuda_manual_seed(0)
    model = pretrain_gpt.get_model(args, pretrain_gpt.transformer_config(args))
    generator = torch.Generator().manual_seed(0)
    batch = torch.randint(0, 256, (args.micro_batch_size, args.seq_length + 1), generator=generator)

    def forward_step(data_iterator, chunk):
        return pretrain_gpt.forward_step(args, iter([batch]), chunk)

    return model, forward_step, {"num_microbatches": 8, "seq_length": args.seq_length, "micro_batch_size": 2}


def prepare(kind, schedule, num_chunks):
    """Return a function that runs a step; Megatron's own are prepared before pipert is installed."""
    parallel_state.destroy_model_parallel()
    virtual = num_chunks if num_chunks > 1 else None
    parallel_state.initialize_model_parallel(1, dist.get_world_size(), virtual_pipeline_model_parallel_size=virtual)
    if schedule is not None:
        pipert.megatron.install(schedule)
    model, forward_step, sizes = (sleeping_model if kind == "timed" else real_model)(num_chunks)
    run = schedules.get_forward_backward_func()

    def step():
        iterators = [None] * len(model)
        return run(forward_step_func=forward_step, data_iterator=iterators, model=model, **sizes)

    return step


def timed(step):
    dist.barrier()
    start = time.perf_counter()
    step()
    elapsed = torch.tensor(1000 * (time.perf_counter() - start))
    dist.all_reduce(elapsed, dist.ReduceOp.MAX)
    return elapsed.item()


def main():
    request = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    cpu_shim.install()
    dist.init_process_group("gloo")
    steps = [prepare(request["kind"], *run) for run in request["runs"]]
    for step in steps:
        step()
    times = [[timed(step) for step in steps] for _ in range(request["steps"])]
    if dist.get_rank() == 0:
        print(json.dumps(times), flush=True)
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)


main()
