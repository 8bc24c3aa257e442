"""What a training run is told: one frozen value, checked once."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

from pipert.errors import ConfigError
from pipert.train.device import DEVICES

VOCAB_SIZE = 256  # the model reads bytes
DEFAULT_LAYERS = 8


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of the model. It says nothing about stages: any cut of the layers is the same model."""

    num_layers: int = DEFAULT_LAYERS
    dim: int = 128
    num_heads: int = 4
    seq_len: int = 128
    positions: str = "rotary"
    tied: bool = True

    def __post_init__(self) -> None:
        for name in ("num_layers", "dim", "num_heads", "seq_len"):
            _at_least_one(name, getattr(self, name))
        if self.positions not in ("rotary", "learned"):
            raise ConfigError(f"positions must be 'rotary' or 'learned', not {self.positions!r}")
        if self.dim % self.num_heads:
            raise ConfigError(f"dim {self.dim} does not divide into {self.num_heads} heads")
        if self.positions == "rotary" and self.dim // self.num_heads % 2:
            raise ConfigError(
                f"rotary positions turn pairs: dim {self.dim} / {self.num_heads} heads = "
                f"{self.dim // self.num_heads} is odd"
            )


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """One run of ``pipert train``.

    ``schedule`` is what ``pipert.sources.load`` takes; ``costs``, ``costs_file`` and ``memory_limit`` are for schedules
    made from costs.
    ``batch_size`` counts the sequences of one microbatch. ``ranks`` and ``microbatches`` are None where the plan file
    or torchrun decides. ``more_layers`` gives the model a layer for each stage of the plan where it has fewer.
    ``vocab_parallel`` is the algorithm by which the vocabulary is split over the ranks, 0 for none; a plan file says so
    itself.
    ``device`` is one of ``DEVICES``; ranks of one machine take its CUDA devices in turns.
    ``timed`` are the costs that replace the model: their text (``F=8,I=8,W=8``, in ms), or the name of a TOML file.
    """

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    more_layers: bool = False
    schedule: str = "zb-v"
    ranks: int | None = None
    microbatches: int | None = None
    chunks: int | None = None
    costs: str | None = None
    costs_file: Path | None = None
    memory_limit: float | None = None
    plan: Path | None = None
    batch_size: int = 2
    steps: int = 100
    seed: int = 0
    lr: float = 3e-3
    warmup: int = 10
    clip: float = 1.0
    dtype: str = "fp32"
    device: str = "cpu"
    recompute: bool = False
    post_validation: bool = False
    vocab_parallel: int = 0
    batch_weight_grads: bool = False
    data: Path | None = None
    save: Path | None = None
    save_every: int = 0
    resume: Path | None = None
    verify: bool = False
    timed: str | None = None
    name: str | None = None
    runs: Path = Path("runs")

    def __post_init__(self) -> None:
        for name in ("ranks", "microbatches", "chunks"):
            if getattr(self, name) is not None:
                _at_least_one(name, getattr(self, name))
        _at_least_one("batch_size", self.batch_size)
        _at_least_one("steps", self.steps)
        for name in ("warmup", "save_every"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, not {getattr(self, name)}")
        for name in ("lr", "clip"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} must be a positive number, not {getattr(self, name)}")
        if self.dtype not in ("fp32", "bf16"):
            raise ConfigError(f"dtype must be 'fp32' or 'bf16', not {self.dtype!r}")
        if self.device not in DEVICES:
            raise ConfigError(f"device must be 'cpu' or 'cuda', not {self.device!r}")
        if self.costs is not None and self.costs_file is not None:
            raise ConfigError("give --costs or --costs-file, not both")
        if self.timed is not None and (self.verify or self.save or self.resume):
            raise ConfigError("--timed trains nothing: leave out --verify, --save and --resume")
        if self.timed is not None and self.device != "cpu":
            raise ConfigError("--timed computes nothing: leave out --device")
        if self.batch_weight_grads and self.verify:
            raise ConfigError("--verify compares bits, which --batch-weight-grads does not keep: leave one out")
        if self.save_every and self.save is None:
            raise ConfigError("--save-every needs --save DIR")
        if self.name is not None and (not self.name or "/" in self.name or self.name in (".", "..", "latest")):
            raise ConfigError(f"--name must be the name of a new folder, not {self.name!r}")

    def run_name(self, schedule: str) -> str:
        """Return the name of the run's folder: ``name``, or one made of the time and the schedule."""
        return self.name or f"{time.strftime('%Y%m%d-%H%M%S')}-{schedule}"


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ConfigError(f"{name} must be at least 1, not {value}")
