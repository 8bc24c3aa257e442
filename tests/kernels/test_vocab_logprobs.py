"""Log-probabilities, with their gradients, and entropies, against torch's."""

import pytest
import torch
from vocab_problems import problem
from vocab_shards import POISON, split

from pipert.kernels import (
    LossOptions,
    OutputShard,
    VocabShard,
    combine,
    vocab_parallel_entropy,
    vocab_parallel_logprobs,
    vocab_parallel_logprobs_and_entropy,
)

SHARD = VocabShard(37)
CASES = pytest.mark.parametrize("soft_cap", [None, 2.0])
BOUNDS = pytest.mark.parametrize("bound", [None, 2500])


def expected(x, w, bias, targets, soft_cap):
    logits = x @ w[:37].T + bias[:37]
    if soft_cap is not None:
        logits = soft_cap * torch.tanh(logits / soft_cap)
    logprobs = logits.log_softmax(1)
    kept = targets != -100
    picked = logprobs.gather(1, targets.clamp(min=0)[:, None])[:, 0]
    return torch.where(kept, picked, 0), -(logprobs.exp() * logprobs).sum(1)


@CASES
@BOUNDS
def test_against_torch(soft_cap, bound):
    x, w, bias, targets, grad = problem()
    x, w, bias = (t.requires_grad_() for t in (x, split(w, SHARD), split(bias, SHARD)))
    arguments = {"shard": SHARD, "bias": bias, "soft_cap": soft_cap, "max_workspace_bytes": bound}
    logprobs, entropies = expected(x, w, bias, targets, soft_cap)
    found = vocab_parallel_logprobs(x, w, targets, **arguments)
    torch.testing.assert_close(found, logprobs, atol=1e-12, rtol=1e-12)
    wanted = torch.autograd.grad(logprobs @ grad, (x, w, bias))
    for a, b in zip(torch.autograd.grad(found @ grad, (x, w, bias)), wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)
    both = vocab_parallel_logprobs_and_entropy(x, w, targets, **arguments)
    torch.testing.assert_close(both[0], logprobs, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(both[1], entropies, atol=1e-12, rtol=1e-12)
    assert not both[1].requires_grad
    assert torch.equal(vocab_parallel_entropy(x, w, **arguments), both[1])


def test_leading_sizes():
    x, w, bias, targets, _ = problem(num_tokens=12)
    w, bias = split(w, SHARD), split(bias, SHARD)
    both = vocab_parallel_logprobs_and_entropy(x, w, targets, shard=SHARD, bias=bias)
    cubes = vocab_parallel_logprobs_and_entropy(x.view(3, 4, 7), w, targets.view(3, 4), shard=SHARD, bias=bias)
    for flat, cube in zip(both, cubes, strict=True):
        assert torch.equal(flat.view(3, 4), cube)


@CASES
def test_shards_combine_to_the_entropy_of_all(soft_cap):
    x, w, bias, targets, _ = problem()
    bias[:14], bias[20] = -torch.inf, -torch.inf
    shards = [VocabShard(37, 3, index) for index in range(3)]
    layers = [OutputShard(split(w, s), s, LossOptions(soft_cap=soft_cap), split(bias, s)) for s in shards]
    parts = torch.stack([layer.statistics(x, targets, entropy=True).packed_KN for layer in layers])
    stats = combine(parts, weighted_extra=True)
    left = [i for i in range(37) if (i >= 14 and i != 20) or soft_cap is not None]
    logits = (x @ w.T + bias)[:, left]
    logits = logits if soft_cap is None else soft_cap * torch.tanh(logits / soft_cap)
    torch.testing.assert_close(
        stats.lse_N - stats.extra_N / stats.sum_exp_N, torch.distributions.Categorical(logits=logits).entropy()
    )
    assert POISON not in stats.packed_KN
