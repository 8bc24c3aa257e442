"""Random inputs of an output layer, with half of the tokens predicted well, as in a trained model.

Shapes: N tokens, D hidden, V rows of the shard.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from pipert.bench.vocab.shapes import Shape
from pipert.kernels.vocab_shard import VocabShard


@dataclass(frozen=True, slots=True)
class Batch:
    """What S and T are given. Targets are rows of the whole vocabulary."""

    x_ND: torch.Tensor
    w_VD: torch.Tensor
    targets_N: torch.Tensor
    shard: VocabShard
    soft_cap: float | None


def random_batch(shape: Shape, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Batch:
    """Return a batch, the same one for the same shape.

    Logits are about normally distributed; every second token that has its target in the shard is moved towards it, so
    that the target gets most of the probability (but for what a soft cap takes).
    """
    shard, hidden_size = shape.shard, shape.layer.hidden_size
    generator = torch.Generator(device).manual_seed(shape.num_tokens + shard.size + hidden_size)

    def normal(rows: int) -> torch.Tensor:
        return torch.randn(rows, hidden_size, generator=generator, device=device, dtype=torch.float32)

    w_VD = (normal(shard.size) / math.sqrt(hidden_size)).to(dtype)
    targets_N = torch.randint(shard.vocab_size, (shape.num_tokens,), generator=generator, device=device)
    local_N = shard.local(targets_N)
    sure_N = (local_N >= 0) & (torch.arange(shape.num_tokens, device=device) % 2 == 0)
    towards_ND = w_VD[local_N.clamp(min=0)] * (sure_N * (math.log(shard.vocab_size) + 4))[:, None]
    return Batch((normal(shape.num_tokens) + towards_ND).to(dtype), w_VD, targets_N, shard, shape.layer.soft_cap)
