"""The models that the benchmarks cut into stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pipert.train.config import VOCAB_SIZE, ModelConfig
from pipert.train.model import build_stage
from pipert.train.model import loss_fn as cross_entropy

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Workload:
    """What a rank computes: the stages it holds, and the batch of one step."""

    name: str
    stages: dict[int, nn.Module]
    inputs: Tensor
    targets: Tensor
    loss_fn: Loss

    def to(self, device: torch.device) -> Workload:
        """Return the same on a device; modules are moved, not copied."""
        stages = {number: stage.to(device) for number, stage in self.stages.items()}
        return replace(self, stages=stages, inputs=self.inputs.to(device), targets=self.targets.to(device))


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error, in few operations."""
    return nn.functional.mse_loss(output, target)


def tiny(stages: Sequence[int], num_stages: int, num_microbatches: int) -> Workload:
    """Make one linear layer of 8 by 8 a stage and two rows a microbatch: nothing but overhead."""
    return _linear("tiny: Linear(8, 8), 2 rows", stages, num_microbatches, width=8, rows=2, layers=1)


def medium(stages: Sequence[int], num_stages: int, num_microbatches: int) -> Workload:
    """Make linear layers of 384 by 384 and 64 rows: below 2 ms of CPU an op."""
    return _linear("2 x Linear(384, 384), 64 rows", stages, num_microbatches, width=384, rows=64, layers=2)


def demo(stages: Sequence[int], num_stages: int, num_microbatches: int) -> Workload:
    """Cut the model that `pipert train` trains by default."""
    config = ModelConfig(tied=False)
    batch_size = 2
    tokens = torch.randint(VOCAB_SIZE, (num_microbatches * batch_size, config.seq_len + 1))
    name = f"demo: {config.num_layers} layers, dim {config.dim}, {batch_size} x {config.seq_len} bytes, not tied"
    modules: dict[int, nn.Module] = {
        stage: build_stage(config, num_stages, stage, seed=0, dtype=torch.float32) for stage in stages
    }
    return Workload(name, modules, tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), cross_entropy)


def _linear(name: str, stages: Sequence[int], num_microbatches: int, *, width: int, rows: int, layers: int) -> Workload:
    modules: dict[int, nn.Module] = {}
    for stage in stages:
        torch.manual_seed(stage)
        linear = [nn.Linear(width, width) for _ in range(layers)]
        modules[stage] = linear[0] if layers == 1 else nn.Sequential(*linear)
    torch.manual_seed(1000)
    inputs = torch.randn(num_microbatches * rows, width)
    targets = torch.randn(num_microbatches * rows, width)
    return Workload(name, modules, inputs, targets, squared_error)
