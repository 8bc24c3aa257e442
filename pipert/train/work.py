"""What one process does in each step, whether it trains or only lets the time pass."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipert.costs import StageCosts
from pipert.replicas import Replica
from pipert.train.digest import Digests
from pipert.train.verify import StepBits
from pipert.train.verify_split import StepValues


@dataclass(frozen=True, slots=True)
class StepNote:
    """What a process tells the others after a step.

    Attributes:
        records: the trace of its ops.
        peak_activation_bytes: per rank that it runs.
        loss: None where it does not hold the last stage.
        bits: what ``--verify`` compares; None if nothing is compared, or the vocabulary is split.
        values: what it compares where the vocabulary is split.
    """

    records: bytes
    peak_activation_bytes: dict[int, int]
    loss: float | None = None
    bits: StepBits | None = None
    values: StepValues | None = None


class Work(Protocol):
    """The stages of this process, step by step."""

    def step(self, step: int) -> StepNote:
        """Run one step."""
        ...

    def costs(self) -> dict[Replica, StageCosts]:
        """Return what the ops of the stages here took, in ms, where that was measured."""
        ...

    def vocab_costs(self) -> list[dict[str, float]]:
        """Return, per shard of the vocabulary here, what its passes took, in ms, where that was measured."""
        ...

    def digests(self) -> Digests:
        """Return the digests of the parameters here."""
        ...

    def save(self, num_steps: int) -> Path:
        """Write a checkpoint after ``num_steps`` steps; return its folder."""
        ...

    def close(self) -> None:
        """Let go of the engine."""
        ...
