"""Cases of the split backward on Megatron's layers: each compares a full backward with its two parts, bit by bit.

    torchrun --nproc-per-node 2 tests/megatron/split_cases.py [NAME …]

runs all that are meant for this many tensor-parallel ranks, or those named, and prints a line of JSON per case: its
name, and what failed.
"""

import contextlib
import json
import os
import queue
import sys
import traceback
import types
from collections import Counter

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

CASES = {}
"""name: (how many ranks, function)."""
_WORK = ("mm", "addmm", "bmm", "embedding_dense_backward", "index_put", "native_layer_norm_backward")


def case(name, ranks=1):
    def add(function):
        CASES[name] = ranks, function
        return function

    return add


class Ops(TorchDispatchMode):
    """Counts the ops that run."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__.replace("_index_put_impl_", "index_put")
        if name in _WORK:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


# What is compared


def compare(module, forward, x, early=(), products=None, gradient=lambda p: p.grad):
    """Compare two microbatches' gradients of all parameters and of the input.

    Args:
        module: whose parameters.
        forward: from the input to the output.
        x: the input; None where the module takes data alone.
        early: the names of matrices whose gradients I computes.
        products: how many matrix products W computes; by default one per matrix.
        gradient: where a parameter's gradient is found.
    """
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    from pipert.megatron import layers
    from pipert.stages.graph import accumulate, gradient_edge
    from pipert.stages.split import input_grads

    layers.register()
    results, work = [], []
    for kinds in ("B", "IW", "IP"):
        reset(module)
        found = []
        for microbatch in range(2):
            torch.manual_seed(microbatch)
            model_parallel_cuda_manual_seed(microbatch)
            leaf = None if x is None else (x + microbatch).requires_grad_()
            y = forward() if leaf is None else forward(leaf)
            assert layers.fallback_reason([gradient_edge(y)]) is None
            grad = torch.randn(y.shape).to(y.dtype)
            edges, wanted = [gradient_edge(y)], [] if leaf is None else [leaf]
            before = [None if gradient(p) is None else gradient(p).clone() for p in module.parameters()]
            with Ops() as first:
                if kinds == "B":
                    accumulate(edges, [grad])
                    arrived = [leaf.grad for leaf in wanted]
                else:
                    arrived, rest = input_grads(edges, [grad], wanted)
            del y, edges
            with Ops() as second:
                if kinds != "B":
                    for parameter, old in zip(module.parameters(), before, strict=True):
                        assert same(gradient(parameter), old), "I touched a gradient"
                    names = layers.early_matrices(module, [edge.node.variable for edge, _ in rest.ready])
                    assert names == list(early), f"computed early: {names}"
                    rest.run() if kinds == "IW" else rest.run_in_pieces()
            work.append((first.counts, second.counts))
            found += [grad.clone() for grad in arrived]
        results.append([*found, *[None if gradient(p) is None else gradient(p).clone() for p in module.parameters()]])
    names = [name for name, _ in module.named_parameters()]
    for other in results[1:]:
        for place, (a, b) in enumerate(zip(results[0], other, strict=True)):
            assert same(a, b), f"differs: {(['input'] * (len(found)) + names)[place]}"
    whole, parts = work[0][0], work[2]
    assert not parts[0] + parts[1] - whole, f"{parts}, and {whole} in a full backward"
    if products is None:
        products = sum(p.dim() == 2 for p in module.parameters()) - len(early)
    done = sum(parts[1][name] for name in ("mm", "embedding_dense_backward", "index_put"))
    assert done == products, f"W computed {parts[1]}"


def same(a, b):
    return (a is None) == (b is None) and (a is None or (a.dtype == b.dtype and torch.equal(a, b)))


def reset(module):
    for parameter in module.parameters():
        parameter.grad = None
        if hasattr(parameter, "main_grad"):
            parameter.main_grad.zero_()
        if hasattr(parameter, "grad_added_to_main_grad"):
            parameter.grad_added_to_main_grad = False


# What is built


def config(**options):
    from megatron.core import parallel_state
    from megatron.core.transformer.transformer_config import TransformerConfig

    defaults = {
        "num_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "tensor_model_parallel_size": parallel_state.get_tensor_model_parallel_world_size(),
        "use_cpu_initialization": True,
        "bias_dropout_fusion": False,
        "gradient_accumulation_fusion": False,
        "attention_dropout": 0.1,
        "hidden_dropout": 0.1,
    }
    return TransformerConfig(**(defaults | options))


def column(bias=True, cls="ColumnParallelLinear", options=None, **kwargs):
    from megatron.core import tensor_parallel

    torch.manual_seed(0)
    settings = {"init_method": nn.init.normal_, "bias": bias, "config": config(**(options or {})), **kwargs}
    if cls == "ColumnParallelLinear":
        settings.setdefault("gather_output", False)
    else:
        settings |= {"input_is_parallel": True, "skip_bias_add": False}
    return getattr(tensor_parallel, cls)(32, 16, **settings)


def gpt(experts=None, tied=False, pre=True, position="rope", sequence=12, post=True, **options):
    """A whole small model, and how to run it; of a part of one, only how to run it from a hidden state."""
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

    torch.manual_seed(0)
    if experts:
        options |= {"moe_token_dispatcher_type": "alltoall", "moe_aux_loss_coeff": 0.01, "add_bias_linear": False}
    model = GPTModel(
        config=config(num_moe_experts=experts, **options),
        transformer_layer_spec=get_gpt_layer_local_spec(num_experts=experts, moe_grouped_gemm=False),
        vocab_size=64,
        max_sequence_length=sequence,
        pre_process=pre,
        post_process=post,
        share_embeddings_and_output_weights=tied,
        position_embedding_type=position,
    )
    if options.get("bf16"):
        model.bfloat16()
    tokens = torch.randint(64, (2, sequence + 1), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(1, 1, sequence, sequence, dtype=torch.bool).triu(1)
    positions = torch.arange(sequence).expand(2, sequence)

    def forward(hidden=None):
        if hidden is not None:
            model.set_input_tensor(hidden)
        labels = tokens[:, 1:].contiguous() if post else None
        return model(tokens[:, :-1].contiguous(), positions, mask, labels=labels)

    return model, forward


# One rank: layers


@case("column")
def _():
    layer = column()
    compare(layer, lambda x: layer(x)[0], torch.randn(5, 3, 32))


@case("column-no-bias")
def _():
    layer = column(bias=False)
    compare(layer, lambda x: layer(x)[0], torch.randn(5, 3, 32))


@case("column-2d")
def _():
    layer = column()
    compare(layer, lambda x: layer(x)[0], torch.randn(5, 32))


@case("column-bf16")
def _():
    layer = column(options={"params_dtype": torch.bfloat16, "bf16": True})
    compare(layer, lambda x: layer(x)[0], torch.randn(5, 3, 32).bfloat16())


@case("column-of-data")
def _():
    layer, data = column(), torch.randn(5, 3, 32)
    compare(layer, lambda: layer(data)[0], None)


@case("column-of-a-transposed-gradient")
def _():
    layer = column()
    compare(layer, lambda x: layer(x)[0].transpose(0, 1).sin(), torch.randn(5, 3, 32))


@case("row")
def _():
    layer = column(cls="RowParallelLinear")
    compare(layer, lambda x: layer(x)[0], torch.randn(5, 3, 32))


@case("used-four-times")
def _():
    layer = column()

    def forward(x):
        for _ in range(4):
            x = F.pad(layer(x)[0], (0, 16)).sin() + x
        return x

    compare(layer, forward, torch.randn(5, 3, 32), products=4)


@case("frozen-weight")
def _():
    layer = column()
    layer.weight.requires_grad_(False)
    compare(layer, lambda x: layer(x)[0], torch.randn(5, 3, 32), products=0)


@case("tied-to-torch")
def _():
    layer = column()
    compare(layer, lambda x: layer(x)[0] + F.linear(x.sin(), layer.weight), torch.randn(5, 3, 32), products=2)


@case("under-saved-tensor-hooks")
def _():
    layer = column()

    def forward(x):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
            return layer(x)[0]

    compare(layer, forward, torch.randn(5, 3, 32), early=["weight"])


def embedding(**options):
    from megatron.core.tensor_parallel import VocabParallelEmbedding

    torch.manual_seed(0)
    tokens = torch.randint(64, (2, 12))
    layer = VocabParallelEmbedding(64, 32, init_method=nn.init.normal_, config=config(**options))
    compare(layer, lambda: layer(tokens).sin(), None)


@case("embedding")
def _():
    embedding()


@case("embedding-deterministic")
def _():
    embedding(deterministic_mode=True)


@contextlib.contextmanager
def environment(**variables):
    old = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    yield
    for name, value in old.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@case("router")
def _():
    from megatron.core.transformer.moe.moe_utils import router_gating_linear

    module = nn.Linear(32, 4).bfloat16()
    for dtype in (torch.float32, torch.float64):
        for bias in (None, module.bias):
            compare(
                module,
                lambda x, dtype=dtype, bias=bias: router_gating_linear(x, module.weight, bias, dtype),
                torch.randn(5, 3, 32).bfloat16(),
            )


@case("grouped-experts")
def _():
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.transformer.moe.experts import GroupedMLP

    torch.manual_seed(0)
    options = config(
        num_moe_experts=3,
        moe_grouped_gemm=True,
        bf16=True,
        params_dtype=torch.bfloat16,
        add_bias_linear=False,
        moe_use_legacy_grouped_gemm=True,
    )
    experts = GroupedMLP(3, options, ProcessGroupCollection.use_mpu_process_groups())
    sizes, probabilities = torch.tensor([4, 0, 5]), torch.rand(9)
    compare(
        experts, lambda x: experts(x, sizes, probabilities)[0], torch.randn(9, 32).bfloat16(), products=2 * 2
    )  # the stand-in computes one product per expert with tokens


# One rank: whole chunks


@case("gpt")
def _():
    model, forward = gpt()
    compare(model, forward, None)


@case("gpt-bf16")
def _():
    model, forward = gpt(bf16=True)
    compare(model, forward, None)


@case("gpt-tied")
def _():
    model, forward = gpt(tied=True)
    compare(model, forward, None, products=2 * 4 + 2)


@case("gpt-learned-positions-deterministic")
def _():
    with environment(NVTE_ALLOW_NONDETERMINISTIC_ALGO="0", NCCL_ALGO="Ring"):
        model, forward = gpt(position="learned_absolute", deterministic_mode=True)
    compare(model, forward, None)


@case("gpt-gated-no-bias-grouped-queries")
def _():
    model, forward = gpt(
        gated_linear_unit=True, activation_func=F.silu, add_bias_linear=False, num_query_groups=2, post=False
    )
    compare(model, forward, None)


@case("gpt-middle")
def _():
    model, forward = gpt(pre=False, post=False)
    compare(model, forward, torch.randn(12, 2, 32))


@case("gpt-end-bf16")
def _():
    model, forward = gpt(pre=False, bf16=True)
    compare(model, forward, torch.randn(12, 2, 32).bfloat16())


@case("gpt-experts")
def _():
    model, forward = gpt(experts=4)
    compare(model, forward, None)


@case("gpt-experts-middle-bf16")
def _():
    model, forward = gpt(experts=4, pre=False, post=False, bf16=True, moe_router_dtype="fp32")
    compare(model, forward, torch.randn(12, 2, 32).bfloat16())


@case("gpt-shared-experts")
def _():
    model, forward = gpt(experts=4, moe_shared_expert_intermediate_size=32)
    compare(model, forward, None)


# One rank: the main gradient


class FusedKernels:
    """Stands in for apex's kernels."""

    @staticmethod
    def wgrad_gemm_accum_fp32(inputs, grad, main_grad):
        main_grad.add_((grad.t() @ inputs).float())

    @staticmethod
    def wgrad_gemm_accum_fp16(inputs, grad, main_grad):
        main_grad.add_(grad.t() @ inputs)


def with_ddp(model, options, **ddp):
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig

    return DistributedDataParallel(options, DistributedDataParallelConfig(**ddp), model)


def main_grad(parameter):
    assert parameter.grad is None
    return parameter.main_grad


@case("fused")
def _():
    for dtype in (torch.float32, torch.bfloat16):
        layer = column(options={"gradient_accumulation_fusion": True})
        layer.weight.main_grad = torch.zeros(16, 32, dtype=dtype)
        compare(
            layer,
            lambda x, layer=layer: layer(x)[0],
            torch.randn(5, 3, 32),
            gradient=lambda p: getattr(p, "main_grad", p.grad),
        )
        assert layer.weight.grad is None


@case("fused-ddp")
def _():
    layer = column(options={"gradient_accumulation_fusion": True})
    ddp = with_ddp(layer, layer.config, grad_reduce_in_fp32=True)
    compare(ddp, lambda x: ddp(x)[0], torch.randn(5, 3, 32), gradient=main_grad)
    assert layer.weight.grad_added_to_main_grad


@case("fused-tied-gpt")
def _():
    for overlap in (False, True):
        model, forward = gpt(tied=True, gradient_accumulation_fusion=True)
        model.shared_embedding_or_output_weight().zero_out_wgrad = True
        ddp = with_ddp(model, model.config, overlap_grad_reduce=overlap)
        with ddp.no_sync():
            compare(ddp, forward, None, gradient=main_grad, products=2 * 4 + 2)


@case("ddp")
def _():
    model, forward = gpt(pre=False)
    ddp = with_ddp(model, model.config, overlap_grad_reduce=True)
    with ddp.no_sync():
        compare(ddp, forward, torch.randn(12, 2, 32), gradient=main_grad)


@case("ddp-hooks-run-once-in-the-second-part")
def _():
    from pipert.megatron import layers
    from pipert.stages.graph import gradient_edge
    from pipert.stages.split import input_grads

    layers.register()
    model, forward = gpt()
    calls = Counter()
    ddp = with_ddp(model, model.config, overlap_grad_reduce=True)
    for group in ddp.bucket_groups:
        group.register_grad_ready = lambda parameter, *unused: calls.update([id(parameter)])
    _, rest = input_grads([gradient_edge(forward())], [torch.ones(2, 12)], [])
    assert rest.ready
    assert not calls
    rest.run()
    assert set(calls.values()) == {1}
    assert len(calls) == len(list(model.parameters()))


@case("deferred-by-megatron")
def _():
    buffer = []
    options = {"gradient_accumulation_fusion": True}
    layer = column(bias=False, grad_output_buffer=buffer, embedding_activation_buffer=[], options=options)
    layer.config.defer_embedding_wgrad_compute, layer.config.wgrad_deferral_limit = True, 0
    layer.weight.main_grad = torch.zeros(16, 32)
    compare(layer, lambda x: layer(x)[0], torch.randn(5, 3, 32), products=0)
    assert len(buffer) == 3 * 2


# One rank: what cannot be split


def reason(forward, *inputs):
    from pipert.megatron import layers
    from pipert.stages.graph import gradient_edge

    layers.register()
    return layers.fallback_reason([gradient_edge(forward(*inputs))])


@case("checkpoints")
def _():
    from megatron.core.tensor_parallel import random

    hidden = torch.randn(12, 2, 32, requires_grad=True)
    for options in (
        {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
        {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]},
        {"recompute_granularity": "selective", "recompute_modules": ["mlp"]},
    ):
        _, forward = gpt(pre=False, **options)
        found = reason(forward, hidden)
        assert found is not None, options
        assert "CheckpointFunction" in found, found
    random.FP8GlobalStateManager = types.SimpleNamespace(is_fp8_enabled=lambda: False)  # Transformer Engine's
    random.activation_recompute_forward = lambda **options: contextlib.nullcontext()
    _, forward = gpt(pre=False, recompute_granularity="selective", recompute_modules=["layernorm"])
    assert "CheckpointWithoutOutputFunction" in reason(forward, hidden)
    _, forward = gpt(pre=False)
    assert reason(forward, hidden) is None


@case("fully-sharded")
def _():
    layer = column()
    layer.weight.__fsdp_param__ = True
    assert "Megatron-FSDP" in reason(lambda x: layer(x)[0], torch.randn(5, 3, 32, requires_grad=True))


# Transformer Engine's protocol, by a stand-in


class Store:
    def __init__(self, delays):
        self.context = queue.Queue()
        self.delays = delays

    def delay_wgrad_compute(self):
        return self.delays


class EngineLinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, store):
        ctx.save_for_backward(x, weight)
        ctx.wgrad_store = store
        return x @ weight.t()

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        if ctx.wgrad_store.delays:
            ctx.wgrad_store.context.put((grad, x))
            return grad @ weight, None, None
        return grad @ weight, grad.t() @ x, None


EngineLinearFunction.__module__ = "transformer_engine.pytorch.module.linear"


class EngineLinear(nn.Module):
    def __init__(self, delays):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))
        self.weight.skip_backward_post_hook = delays
        self.wgrad_store = Store(delays)
        self.hooks = []

    def forward(self, x):
        return EngineLinearFunction.apply(x, self.weight, self.wgrad_store)

    def register_wgrad_accumulation_and_reduce_hooks(self, hook):
        self.hooks.append(hook)

    def backward_dw(self):
        grad, x = self.wgrad_store.context.get_nowait()
        self.weight.grad = grad.t() @ x
        for hook in self.hooks:
            hook()


def by_engine(delays, hook=None):
    from pipert.megatron import layers
    from pipert.stages.graph import accumulate, gradient_edge
    from pipert.stages.split import input_grads

    torch.manual_seed(0)
    module = nn.Sequential(EngineLinear(delays), nn.LayerNorm(8), nn.Identity(), EngineLinear(delays))
    idle = EngineLinear(delays)  # is never run
    delayed = layers.DelayedWgrads(nn.ModuleList([module, idle]))
    if hook is not None:
        for layer in (module[0], module[3]):
            layer.register_wgrad_accumulation_and_reduce_hooks(lambda layer=layer: hook(layer))
    rests = []
    for _ in range(3):
        x = torch.randn(4, 8, requires_grad=True)
        y = module(x)
        if not delays:
            assert "delay_wgrad_compute" in layers.fallback_reason([gradient_edge(y)])
            accumulate([gradient_edge(y)], [torch.ones(4, 8)])
            continue
        assert layers.fallback_reason([gradient_edge(y)]) is None
        rests.append(input_grads([gradient_edge(y)], [torch.ones(4, 8)], [x])[1])
        assert layers.early_matrices(module, [edge.node.variable for edge, _ in rests[-1].ready]) == []
        assert module[0].weight.grad is None
    for rest in rests:
        rest.run()
        delayed.run()
    return module


@case("transformer-engine")
def _():
    for p, q in zip(by_engine(True).parameters(), by_engine(False).parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


@case("transformer-engine-ddp-hooks")
def _():
    taken = []

    def take_away(layer):
        taken.append(layer)
        layer.weight.main = getattr(layer.weight, "main", 0) + layer.weight.grad
        layer.weight.grad = None

    module, expected = by_engine(True, take_away), by_engine(False)
    assert taken == [module[3], module[0]] * 3
    for layer in (0, 3):
        assert torch.equal(module[layer].weight.main, expected[layer].weight.grad)


@case("transformer-engine-twice")
def _():
    layer = EngineLinear(True)
    assert "runs twice" in reason(lambda x: layer(layer(x)), torch.randn(4, 8, requires_grad=True))


# Two tensor-parallel ranks


@case("tp-column-row", ranks=2)
def _():
    first, second = column(), column(cls="RowParallelLinear")
    pair = nn.ModuleList([first, second])
    compare(
        pair, lambda x: second(F.pad(first(x)[0], (0, 8)))[0], torch.randn(5, 3, 32), products=2
    )  # [5, 3, 8] of 16 on this rank, padded to the 16 of 32 that the second takes


@case("tp-sequence-parallel", ranks=2)
def _():
    options = {"sequence_parallel": True}
    first, second = column(options=options), column(cls="RowParallelLinear", options=options)
    pair = nn.ModuleList([first, second])
    compare(pair, lambda x: second(F.pad(first(x)[0], (0, 8)))[0], torch.randn(6, 3, 32), products=2)


@case("tp-gpt-tied", ranks=2)
def _():
    model, forward = gpt(tied=True)
    compare(model, forward, None, products=2 * 4 + 2)


@case("tp-gpt-sequence-parallel-bf16", ranks=2)
def _():
    model, forward = gpt(sequence_parallel=True, bf16=True)
    compare(model, forward, None)


@case("tp-gpt-sequence-parallel-fused-ddp", ranks=2)
def _():
    model, forward = gpt(sequence_parallel=True, gradient_accumulation_fusion=True, pre=False)
    ddp = with_ddp(model, model.config)
    compare(ddp, forward, torch.randn(6, 2, 32), gradient=main_grad)


@case("tp-gpt-experts", ranks=2)
def _():
    model, forward = gpt(experts=4, sequence_parallel=True, pre=False)
    compare(model, forward, torch.randn(6, 2, 32))


# Running them


def stand_in_for_grouped_gemm():
    """Give the package's public interface (functions that take [tokens, in], [experts, in, out], sizes)."""

    class GroupedGemm(torch.autograd.Function):
        @staticmethod
        def forward(ctx, a, b, batch_sizes, trans_b):
            ctx.save_for_backward(a, b, batch_sizes)
            ctx.trans_b = trans_b
            return product(a, b, batch_sizes, trans_b)

        @staticmethod
        def backward(ctx, grad):
            a, b, sizes = ctx.saved_tensors
            grad_a = product(grad, b, sizes, not ctx.trans_b) if ctx.needs_input_grad[0] else None
            grad_b = None
            if ctx.needs_input_grad[1]:
                grad_b = torch.zeros_like(b)
                for expert, (x, g) in enumerate(zip(parts(a, sizes), parts(grad, sizes), strict=True)):
                    if len(x):
                        grad_b[expert] = g.t() @ x if ctx.trans_b else x.t() @ g
            return grad_a, grad_b, None, None

    def parts(x, sizes):
        return x.split(sizes.tolist())

    def product(a, b, sizes, trans_b):
        weights = b.transpose(1, 2) if trans_b else b
        pairs = zip(parts(a, sizes), weights, strict=True)
        return torch.cat([x @ w for x, w in pairs if len(x)])

    def gmm(a, b, batch_sizes, trans_b=False):
        return GroupedGemm.apply(a, b, batch_sizes, trans_b)

    package = types.ModuleType("grouped_gemm")
    package.ops = types.SimpleNamespace(GroupedGemm=GroupedGemm, gmm=gmm)
    sys.modules["grouped_gemm"] = package


def main():
    stand_in_for_grouped_gemm()
    torch.compile = lambda function, **options: function  # Megatron fuses small functions
    import cpu_shim
    from torch._dynamo import trace_rules

    trace_rules.get_torch_obj_rule_map()  # made once, and a dispatch mode needs it; it wants torch as it is
    cpu_shim.install()
    import torch.distributed as dist
    from megatron.core import parallel_state, tensor_parallel
    from megatron.core.tensor_parallel import layers
    from megatron.core.transformer import torch_norm

    # Without apex there is no norm that allows sequence parallelism; what it lacks happens after the backward.
    torch_norm.WrappedTorchNorm.__new__ = lambda cls, config, hidden_size, eps=1e-5, **rest: nn.LayerNorm(hidden_size)
    layers.fused_weight_gradient_mlp_cuda = FusedKernels
    layers._grad_accum_fusion_available = True
    dist.init_process_group("gloo")
    ranks = dist.get_world_size()
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=ranks)
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    for name, (wanted, function) in CASES.items():
        if wanted != ranks or (len(sys.argv) > 1 and name not in sys.argv[1:]):
            continue
        try:
            function()
            failure = None
        except Exception:
            failure = traceback.format_exc()
        if dist.get_rank() == 0 or failure is not None:
            print(json.dumps({"name": name, "failure": failure}), flush=True)
        if failure is not None and ranks > 1:
            sys.exit(1)  # the other ranks may wait for this one
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
