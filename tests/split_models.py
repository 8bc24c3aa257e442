"""A small language model, whole and with its vocabulary split over ranks, and hand-written schedules for it."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipert.ir import Op, Program
from pipert.kernels import LossOptions, VocabShard
from pipert.stages import SplitVocabulary


class Block(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.linear(x))


class Model:
    """The whole model and, with copies of its parameters, the same in pieces."""

    def __init__(self, vocab_size: int, dim: int, num_stages: int, *, tied: bool, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        self.vocab_size, self.tied = vocab_size, tied
        self.blocks = nn.ModuleList(Block(dim) for _ in range(num_stages)).to(dtype)
        self.embedding = nn.Parameter(torch.randn(vocab_size, dim, dtype=dtype))
        self.output = self.embedding if tied else nn.Parameter(torch.randn(vocab_size, dim, dtype=dtype) / dim**0.5)

    def parameters(self) -> list[nn.Parameter]:
        ends = [self.embedding] if self.tied else [self.embedding, self.output]
        return [*self.blocks.parameters(), *ends]

    def loss(
        self, tokens: Tensor, targets: Tensor, reduction: str = "mean", options: LossOptions | None = None
    ) -> Tensor:
        x = functional.embedding(tokens, self.embedding)
        for block in self.blocks:
            x = block(x)
        logits = x.flatten(0, -2) @ self.output.T
        smoothing = 0.0 if options is None else options.label_smoothing
        return functional.cross_entropy(logits, targets.flatten(), reduction=reduction, label_smoothing=smoothing)

    def stages(self) -> dict[int, nn.Module]:
        copies = {}
        for stage, block in enumerate(self.blocks):
            copies[stage] = Block(block.linear.in_features).to(block.linear.weight.dtype)
            copies[stage].load_state_dict(block.state_dict())
        return copies

    def shards(self, num_ranks: int, options: LossOptions | None = None) -> dict[int, SplitVocabulary]:
        return {rank: self.shard(num_ranks, rank, options) for rank in range(num_ranks)}

    def shard(self, num_ranks: int, rank: int, options: LossOptions | None = None) -> SplitVocabulary:
        shard = VocabShard(self.vocab_size, num_ranks, rank)
        embedding = nn.Parameter(rows_of(shard, self.embedding))
        output = embedding if self.tied else nn.Parameter(rows_of(shard, self.output))
        return SplitVocabulary(shard, embedding, output, options=options)


def rows_of(shard: VocabShard, whole: Tensor) -> Tensor:
    """The rows of a shard, with ones as padding, which must not matter."""
    rows = torch.ones(shard.size, whole.shape[1], dtype=whole.dtype)
    rows[: shard.num_real] = whole.detach()[shard.start : shard.start + shard.num_real]
    return rows


def whole(shards: dict[int, SplitVocabulary], name: str, *, grad: bool = False) -> Tensor:
    """Put the real rows of all shards together."""
    parameters = [(each.shard, getattr(each, name)) for _, each in sorted(shards.items())]
    return torch.cat([(p.grad if grad else p.detach())[: shard.num_real] for shard, p in parameters])


def one_by_one(num_ranks: int, num_microbatches: int, algorithm: int) -> Program:
    """One microbatch after the other, everything split."""
    rows = []
    for rank in range(num_ranks):
        ops = []
        for m in range(num_microbatches):
            ops += [f"{rank}EMBED{m}", f"VEMBED{m}", f"{rank}F{m}", f"VBCAST{m}", f"{rank}S{m}", f"VSTATS{m}"]
            ops += [f"{rank}T{m}", f"VGRAD{m}"] if algorithm == 1 else [f"VGRAD{m}", f"{rank}T{m}"]
            ops += [f"{rank}I{m}", f"VEMBED_GRAD{m}", f"{rank}W{m}", f"{rank}EMBED_W{m}"]
        rows.append([Op.parse(text) for text in ops])
    return Program.single_path("one by one", range(num_ranks), num_microbatches, rows)
