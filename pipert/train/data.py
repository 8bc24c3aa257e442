"""Batches, cut from the text at places that depend on (seed, step) alone."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from pipert.train.text import Text


class Batches:
    """Deterministic batches of byte sequences.

    Args:
        text: where they come from.
        num_sequences: sequences per batch, all microbatches together.
        seq_len: bytes per sequence.
        seed: of the places where sequences start.
        device: where batches are put.

    Raises:
        ConfigError: the text is shorter than one batch.
    """

    def __init__(
        self, text: Text, num_sequences: int, seq_len: int, seed: int, device: torch.device | None = None
    ) -> None:
        text.require(num_sequences * seq_len + 1)
        self._text_N = torch.frombuffer(text.content, dtype=torch.uint8)
        self._num_sequences = num_sequences
        self._seq_len = seq_len
        self._seed = seed
        self._device = device

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of a step: int64 [num_sequences, seq_len] each."""
        digest = hashlib.blake2b(f"{self._seed}/batch/{step}".encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
        num_starts = len(self._text_N) - self._seq_len
        starts_B1 = torch.randint(num_starts, (self._num_sequences, 1), generator=generator)
        windows = self._text_N[starts_B1 + torch.arange(self._seq_len + 1)].to(self._device).long()
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()
