"""What the user of the drop-in chooses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipert.costs import Costs
from pipert.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Options:
    """The choices, the same on every rank.

    Attributes:
        schedule: a schedule's name or a file that holds one; None for the order that Megatron itself has: ``1f1b``, or
            ``interleaved`` where there are several model chunks.
        costs: what ops cost, as ``F=1,I=1,W=1`` or the name of a TOML file, for schedules that are made from costs and
            for the memory limit.
        memory_limit: the most activation that a rank may hold, in the unit of the costs' ``act``.
        runs: the folder in which a run leaves its plan, trace and timeline; None: nothing is left.
        timeout_ms: the longest wait for another rank.
        vocab_parallel: ``"2"`` splits the output layer over the vocabulary, by Algorithm 2 (arXiv 2411.05288);
            ``"off"`` leaves it to the last stage.

    Raises:
        ConfigError: costs, limits or algorithms that are none.
    """

    schedule: str | None = None
    costs: str | None = None
    memory_limit: float | None = None
    runs: Path | None = None
    timeout_ms: int = 600_000
    vocab_parallel: str = "off"

    @property
    def splits_vocabulary(self) -> bool:
        """Whether the output layer is split over the pipeline's ranks."""
        return self.vocab_parallel != "off"

    def __post_init__(self) -> None:
        if self.timeout_ms < 1:
            raise ConfigError(f"--pipert-timeout-ms must be positive, not {self.timeout_ms}")
        if self.vocab_parallel == "1":
            raise ConfigError(
                "--pipert-vocab-parallel 1: in Algorithm 1 every rank would have to know the gradients of the losses, "
                "which the script computes on the last stage's rank, one meeting earlier; use 2"
            )
        if self.vocab_parallel not in ("off", "2"):
            raise ConfigError(f"--pipert-vocab-parallel must be off or 2, not {self.vocab_parallel!r}")
        self.parsed_costs()

    def parsed_costs(self) -> Costs | None:
        """Return the costs, read."""
        if self.costs is None:
            return None
        return Costs.load(self.costs) if self.costs.endswith(".toml") else Costs.parse(self.costs)
