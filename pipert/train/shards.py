"""The model's two ends where the vocabulary is split over the ranks: each rank's rows, and all of them put together.

Shapes: V rows of a shard, padding included; D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipert.errors import ConfigError
from pipert.kernels import VocabShard
from pipert.numerics import Copy
from pipert.plan import Plan
from pipert.stages import SplitVocabulary
from pipert.train.config import VOCAB_SIZE, ModelConfig
from pipert.train.model import initialise

Shards = Mapping[Copy, VocabShard]
"""Which rows the parameters hold that are shards."""


class _Ends(nn.Module):
    """Both ends of the whole model; names are those in it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB_SIZE, config.dim)
        self.head = self.embed if config.tied else nn.Linear(config.dim, VOCAB_SIZE, bias=False)


def build_shard(
    config: ModelConfig,
    num_ranks: int,
    rank: int,
    *,
    seed: int,
    dtype: torch.dtype,
    device: torch.device,
    main_grad_dtype: torch.dtype | None,
    kind: Callable[..., SplitVocabulary] = SplitVocabulary,
) -> SplitVocabulary:
    """Return the rows of ``rank`` of the embedding and of the output layer, initialised as the whole model's are."""
    ends = _Ends(config)
    initialise(ends, seed, config.num_layers)
    shard = VocabShard(VOCAB_SIZE, num_ranks, rank)
    embedding = nn.Parameter(rows_of(shard, ends.embed.weight.detach()).to(device, dtype))
    output = embedding
    if not config.tied:
        output = nn.Parameter(rows_of(shard, ends.head.weight.detach()).to(device, dtype))
    return kind(shard, embedding, output, main_grad_dtype=main_grad_dtype)


def shard_parameters(plan: Plan, shards: Mapping[int, SplitVocabulary]) -> dict[Copy, nn.Parameter]:
    """Return every parameter of the shards, under its name in the whole model; they follow the last stage."""
    names = {"embedding": "embed.weight", "output": "head.weight"}
    return {
        Copy(rank, plan.num_stages + rank, names[name]): parameter
        for rank, shard in shards.items()
        for name, parameter in shard.named_parameters()
    }


def rows_of(shard: VocabShard, whole_VD: Tensor) -> Tensor:
    """Return a shard's rows of a whole tensor, zeros as padding."""
    rows_VD = whole_VD.new_zeros(shard.size, whole_VD.shape[1])
    rows_VD[: shard.num_real] = whole_VD[shard.start : shard.start + shard.num_real]
    return rows_VD


def joined(parts: Mapping[VocabShard, Tensor]) -> Tensor:
    """Put the rows of all shards together, without the padding."""
    by_index = sorted(parts.items(), key=lambda part: part[0].index)
    return torch.cat([rows_VD[: shard.num_real] for shard, rows_VD in by_index])


def gathered(parts: Mapping[VocabShard, Tensor]) -> Tensor:
    """Put the rows of all ranks' shards together, on all ranks; ``parts`` are those of this process. Collective."""
    (shard, rows_VD), *more = parts.items()
    if more or shard.num_shards == 1:
        return joined(parts)
    others = [torch.empty_like(rows_VD, device="cpu") for _ in range(shard.num_shards)]
    dist.all_gather(others, rows_VD.detach().cpu())
    shards = [VocabShard(shard.vocab_size, shard.num_shards, index) for index in range(shard.num_shards)]
    return joined(dict(zip(shards, others, strict=True))).to(rows_VD.device)


def check_both_ends(embeds: bool, scores: bool) -> bool:
    """Whether a plan splits the vocabulary.

    Raises:
        ConfigError: it splits one end of the model only.
    """
    if embeds != scores:
        raise ConfigError("this model splits its embedding together with its output layer; the plan splits one of them")
    return embeds
