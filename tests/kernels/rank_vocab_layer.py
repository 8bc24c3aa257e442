"""Run by each of four ranks: the module over a gloo group is the unsplit layer.

Argument: a folder for the file that the ranks meet at.
"""

import os
import sys

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from pipert.errors import ConfigError
from pipert.kernels import (
    LossOptions,
    VocabParallelLinearCrossEntropy,
    VocabShard,
    vocab_parallel_entropy,
    vocab_parallel_linear_cross_entropy,
    vocab_parallel_logprobs,
)

HIDDEN, VOCAB, SHAPE = 9, 53, (5, 7)


def tensors(dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*SHAPE, HIDDEN, generator=generator, dtype=torch.float64)
    w = torch.randn(VOCAB, HIDDEN, generator=generator, dtype=torch.float64)
    bias = torch.randn(VOCAB, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, VOCAB, SHAPE, generator=generator)
    targets[0, :3], targets[1] = -100, 30
    return x.to(dtype), w.to(dtype), bias.to(dtype), targets


def own_rows(full, shard):
    return full[shard.start : shard.start + shard.num_real]


def check_module(group, dtype, tolerance):
    x, w, bias, targets = tensors(dtype)
    for bound in (None, 3000):
        for reduction in ("none", "sum", "mean"):
            layer = VocabParallelLinearCrossEntropy(
                HIDDEN,
                VOCAB,
                process_group=group,
                bias=True,
                options=LossOptions(label_smoothing=0.1),
                reduction=reduction,
                max_workspace_bytes=bound,
                dtype=dtype,
            )
            layer.load_full(w, bias)
            leaves = [t.double().clone().requires_grad_() for t in (x, w, bias)]
            logits = F.linear(*leaves).view(-1, VOCAB)
            expected = F.cross_entropy(logits, targets.view(-1), reduction=reduction, label_smoothing=0.1)
            leaf = x.clone().requires_grad_()
            loss = layer(leaf * 1, targets)
            scale = torch.linspace(0.5, 2, loss.numel(), dtype=torch.float64).view(loss.shape)
            loss.backward(scale.to(loss.dtype))
            expected.backward(scale.view(expected.shape))

            def assert_close(found, wanted):
                torch.testing.assert_close(found.double(), wanted, atol=tolerance, rtol=tolerance)

            assert_close(loss.detach(), expected.detach().view(loss.shape))
            assert_close(leaf.grad, leaves[0].grad)
            assert_close(layer.weight.grad[: layer.shard.num_real], own_rows(leaves[1].grad, layer.shard))
            assert_close(layer.bias.grad[: layer.shard.num_real], own_rows(leaves[2].grad, layer.shard))
            same_on_all_ranks(group, loss.detach(), leaf.grad)


def same_on_all_ranks(group, *found):
    for tensor in found:
        copies = [torch.empty_like(tensor) for _ in range(group.size())]
        dist.all_gather(copies, tensor, group=group)
        assert all(torch.equal(copies[0], copy) for copy in copies)


def check_probabilities(group, shard):
    x, w, _, targets = tensors(torch.float64)
    weight = torch.zeros(shard.size, HIDDEN, dtype=torch.float64)
    weight[: shard.num_real] = own_rows(w, shard)
    logprobs = (x @ w.T).log_softmax(-1)
    found = vocab_parallel_logprobs(x, weight, targets, shard=shard, group=group)
    expected = logprobs.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    torch.testing.assert_close(found, torch.where(targets == -100, 0, expected))
    entropy = vocab_parallel_entropy(x, weight, shard=shard, group=group)
    torch.testing.assert_close(entropy, -(logprobs.exp() * logprobs).sum(-1))


def check_compiled(group):
    x, w, bias, targets = tensors(torch.float32)
    layer = VocabParallelLinearCrossEntropy(HIDDEN, VOCAB, process_group=group, bias=True)
    layer.load_full(w, bias)
    losses = [f(x, targets) for f in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager"))]
    grads = [torch.autograd.grad(loss, layer.weight)[0] for loss in losses]
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(grads[0], grads[1])


def check_refusals(group, shard):
    x, _, _, targets = tensors(torch.float32)
    weight = torch.zeros(shard.size, HIDDEN)
    for other in ({}, {"group": group}):
        wrong = VocabShard(VOCAB, 4, (shard.index + 1) % 4)
        with pytest.raises(ConfigError, match="group"):
            vocab_parallel_linear_cross_entropy(x, weight, targets, shard=wrong, **other)


def main():
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/meet", rank=rank, world_size=4)
    group = dist.group.WORLD
    shard = VocabShard(VOCAB, 4, rank)
    check_module(group, torch.float64, 1e-12)
    check_module(group, torch.float32, 1e-5)
    check_probabilities(group, shard)
    check_compiled(group)
    check_refusals(group, shard)
    alone = [dist.new_group([other]) for other in range(4)][rank]
    check_module(alone, torch.float64, 1e-12)
    # A subgroup whose ranks are others than the world's.
    pair = [dist.new_group([0, 2]), dist.new_group([1, 3])][rank % 2]
    check_module(pair, torch.float64, 1e-12)
    dist.barrier()
    print(f"rank {rank} done", flush=True)
    dist.destroy_process_group()


main()
