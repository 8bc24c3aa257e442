"""All shards of an output layer in one process; the unsplit layer, written out in plain torch."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipert.kernels.loss_options import LossOptions
from pipert.kernels.output_shard import OutputShard
from pipert.kernels.statistics import combine
from pipert.kernels.vocab_shard import VocabShard

POISON = 7.0
"""What padded rows of a weight hold: it must not show in any result."""


@dataclass
class Results:
    loss_N: torch.Tensor
    lse_N: torch.Tensor
    dx_ND: torch.Tensor
    dw_VD: torch.Tensor
    db_V: torch.Tensor | None


def split(full: torch.Tensor, shard: VocabShard) -> torch.Tensor:
    """Return the shard's rows of a weight or bias of the whole real vocabulary; padding is poisoned."""
    padded = full.new_full((shard.padded_vocab_size, *full.shape[1:]), POISON)
    padded[: shard.vocab_size] = full
    return padded[shard.start : shard.start + shard.size].contiguous()


def run_shards(
    x_ND, w_VD, targets_N, loss_grad_N, *, options=LossOptions(), num_shards=1, algorithm=1, bias_V=None, bound=None
) -> Results:
    vocab_size = len(w_VD)
    shards = [VocabShard(vocab_size, num_shards, index) for index in range(num_shards)]
    layers = [
        OutputShard(split(w_VD, s), s, options, None if bias_V is None else split(bias_V, s), bound) for s in shards
    ]
    states = [layer.score(x_ND, targets_N, algorithm=algorithm) for layer in layers]
    stats = combine(torch.stack([state.statistics.packed_KN for state in states]))
    loss_N = layers[0].losses(stats, targets_N)
    dtype = loss_N.dtype
    dws = [x_ND.new_zeros(s.size, x_ND.shape[1], dtype=dtype) for s in shards]
    dbs = [None if bias_V is None else x_ND.new_zeros(s.size, dtype=dtype) for s in shards]
    dx_ND = sum(layer.input_grad(state, stats, loss_grad_N) for layer, state in zip(layers, states, strict=True))
    for layer, state, dw, db in zip(layers, states, dws, dbs, strict=True):
        layer.add_weight_grad(state, stats, loss_grad_N, dw, db)
    for shard, dw in zip(shards, dws, strict=True):
        assert not dw[shard.num_real :].any()
    db_V = None if bias_V is None else torch.cat(dbs)[:vocab_size]
    return Results(loss_N, stats.lse_N, dx_ND, torch.cat(dws)[:vocab_size], db_V)


def plain_losses(x_ND, w_VD, targets_N, options=LossOptions(), bias_V=None) -> torch.Tensor:
    """Write the definition of LossOptions out, differentiable by autograd, in the inputs' dtype."""
    logits_NV = x_ND @ w_VD.T
    if bias_V is not None:
        logits_NV = logits_NV + bias_V
    if options.soft_cap is not None:
        logits_NV = options.soft_cap * torch.tanh(logits_NV / options.soft_cap)
    lse_N = logits_NV.logsumexp(1)
    kept_N = targets_N != options.ignore_index
    target_N = logits_NV.gather(1, torch.where(kept_N, targets_N, 0)[:, None])[:, 0]
    epsilon = options.label_smoothing
    loss_N = lse_N - (1 - epsilon) * target_N - epsilon * logits_NV.mean(1) + options.z_loss * lse_N**2
    return torch.where(kept_N, loss_N, 0)


def run_plain(x_ND, w_VD, targets_N, loss_grad_N, *, options=LossOptions(), bias_V=None, dtype=torch.float64):
    """Run the unsplit layer and autograd in ``dtype``."""
    leaves = [None if t is None else t.detach().to(dtype).requires_grad_() for t in (x_ND, w_VD, bias_V)]
    x, w, b = leaves
    loss_N = plain_losses(x, w, targets_N, options, b)
    grads = torch.autograd.grad((loss_N * loss_grad_N.to(dtype)).sum(), [leaf for leaf in leaves if leaf is not None])
    logits = x @ w.T if b is None else x @ w.T + b
    if options.soft_cap is not None:
        logits = options.soft_cap * torch.tanh(logits / options.soft_cap)
    return Results(
        loss_N.detach(), logits.logsumexp(1).detach(), grads[0], grads[1], grads[2] if b is not None else None
    )
