"""Which rows of the vocabulary a shard holds."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipert.errors import ConfigError


@dataclass(frozen=True, slots=True)
class VocabShard:
    """One of ``num_shards`` equal pieces of a vocabulary, which is padded to a multiple of ``2 * num_shards`` rows.

    The padding is at the end, so the last shards may hold fewer real rows than the others, or none. Padded rows take
    part in no maximum and no sum, and get no gradient (arXiv 2411.05288, section 4).

    Attributes:
        vocab_size: real rows of the whole vocabulary, V.
        num_shards: p.
        index: which shard, from 0.
    """

    vocab_size: int
    num_shards: int = 1
    index: int = 0

    def __post_init__(self) -> None:
        if self.vocab_size < 1 or self.num_shards < 1:
            raise ConfigError(f"cannot split a vocabulary of {self.vocab_size} over {self.num_shards} shards")
        if not 0 <= self.index < self.num_shards:
            raise ConfigError(f"there is no shard {self.index} of {self.num_shards}")

    @property
    def padded_vocab_size(self) -> int:
        """Rows of all shards together, padding included."""
        step = 2 * self.num_shards
        return (self.vocab_size + step - 1) // step * step

    @property
    def size(self) -> int:
        """Rows of a shard, padding included."""
        return self.padded_vocab_size // self.num_shards

    @property
    def start(self) -> int:
        """The first row of this shard in the whole vocabulary."""
        return self.index * self.size

    @property
    def num_real(self) -> int:
        """Rows of this shard that are no padding; they come first."""
        return min(max(self.vocab_size - self.start, 0), self.size)

    def local(self, targets_N: torch.Tensor) -> torch.Tensor:
        """Return each target's row in this shard, or -1 where another shard holds it (or none does).

        Args:
            targets_N: rows of the whole vocabulary, any integer dtype.
        """
        local_N = targets_N - self.start
        return torch.where((local_N >= 0) & (local_N < self.num_real), local_N, -1)
