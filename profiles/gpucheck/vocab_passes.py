"""S, T and the embedding of small output layers on the GPU, both ways of S; compute-sanitizer watches them."""

from typing import Literal
from unittest import mock

import torch

from pipert.kernels import EmbeddingShard, LossOptions, OutputShard, VocabShard
from pipert.kernels.gpu import backend as gpu_backend
from pipert.kernels.statistics import combine

SIZES = ((123, 72, 507), (200, 128, 1032))
"""Tokens, hidden size and vocabulary: rows that TMA cannot move, and rows that it can."""


def main() -> None:
    """Run all passes of two shards. Where algorithms are deterministic no choice is measured: each kernel runs once."""
    torch.use_deterministic_algorithms(True)
    routes: tuple[Literal["library", "fused"], ...] = ("library", "fused")
    for route in routes:
        backend = gpu_backend.GpuBackend(route=route)
        with mock.patch.object(gpu_backend, "backend", return_value=backend):
            for num_tokens, hidden, vocab in SIZES:
                for options in (LossOptions(), LossOptions(soft_cap=5.0)):
                    passes(num_tokens, hidden, vocab, options)
    print("ran to its end")


def passes(num_tokens: int, hidden: int, vocab: int, options: LossOptions) -> None:
    """Run S and T of both shards, forward only too, and the embedding."""
    x = torch.randn(num_tokens, hidden, device="cuda", dtype=torch.bfloat16)
    targets = torch.randint(vocab, (num_tokens,), device="cuda")
    shards = [VocabShard(vocab, 2, index) for index in range(2)]
    weights = [torch.randn(shard.size, hidden, device="cuda", dtype=torch.bfloat16) for shard in shards]
    layers = [OutputShard(weight, shard, options) for weight, shard in zip(weights, shards, strict=True)]
    states = [layer.score(x, targets, algorithm=2) for layer in layers]
    everybodys = combine(torch.stack([state.statistics.packed_KN for state in states]))
    loss_grad = torch.full((num_tokens,), 1 / num_tokens, device="cuda")
    for layer, state, weight, shard in zip(layers, states, weights, shards, strict=True):
        main_grad = torch.zeros_like(weight, dtype=torch.float32)
        layer.add_weight_grad(state, everybodys, loss_grad, main_grad)
        grad = layer.input_grad(state, everybodys, loss_grad)
        layer.statistics(x, targets, entropy=True)
        embedding = EmbeddingShard(weight, shard)
        embedding.add_grad(grad.bfloat16(), targets, main_grad)
        assert main_grad.isfinite().all()
        assert embedding.embed(targets).isfinite().all()


main()
