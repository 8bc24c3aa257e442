"""Small models cut into stages, one for each thing that a pipeline must get right to the bit."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from where import DEVICE

import pipert
from pipert import passes, schedules
from pipert.ir import Op, Program
from pipert.replicas import Replica, replicas

WIDTH = 8
TWO_WAY = "two-way"
CAN_SOLVE = importlib.util.find_spec("ortools") is not None
SCHEDULES = (*(name for name in schedules.names() if CAN_SOLVE or name != "optimal"), TWO_WAY)
PROGRAMS: dict[tuple[str, int, int], Program] = {}
Modules = dict[Replica, nn.Module]


@dataclass
class Pipeline:
    """A plan and everything that is needed to run it; ``modules``, by stage, are never run themselves."""

    plan: pipert.Plan
    modules: dict[int, nn.Module]
    inputs: list[Tensor]
    targets: list[Tensor]
    loss_fn: Callable[..., Tensor]
    tied: list[tuple[tuple[int, str], ...]] = field(default_factory=list)
    recompute: dict[int, bool | list[str]] = field(default_factory=dict)

    def copies(self, rank: int | None = None) -> Modules:
        """Fresh modules with the same parameters, by (rank, stage): those of one rank, or all."""
        ranks = range(self.plan.num_ranks) if rank is None else [rank]
        return {replica: copy.deepcopy(self.modules[replica[1]]) for replica in replicas(self.plan, ranks)}

    def stages(self, modules: Modules) -> dict[Replica, nn.Module | pipert.Stage]:
        """What an engine is given; where the plan recomputes a whole stage it finds out by itself."""
        return {
            replica: pipert.Stage(module, recompute=self.recompute[replica[1]])
            if replica[1] in self.recompute
            else module
            for replica, module in modules.items()
        }


class Residual(nn.Module):
    """Adds to what it is given, and passes the pipeline's input on as it is, for the last stage to use."""

    def __init__(self, is_last: bool):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)
        self.is_last = is_last

    def forward(self, x: Tensor, first: Tensor | None = None):
        first = x if first is None else first
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return x * first if self.is_last else (x, first)


class Fork(nn.Module):
    """Hands on two slices of one tensor, a transposed one, and token numbers that need no gradient."""

    def __init__(self, is_first: bool, is_last: bool):
        super().__init__()
        self.embed = nn.Embedding(16, 2 * WIDTH) if is_first else None
        self.mix = nn.Linear(2 * WIDTH, 2 * WIDTH)
        self.is_last = is_last

    def forward(self, *inputs: Tensor):
        if self.embed is not None:
            (tokens,) = inputs
            x = self.embed(tokens)
        else:
            left, right, turned, tokens = inputs
            x = torch.cat([left, right], dim=-1) + turned.mT * (tokens[:, :1, None] + 1)
        x = torch.tanh(self.mix(x))
        if self.is_last:
            return x
        left, right = x.chunk(2, dim=-1)
        return left, right, (x * 0.5).mT, tokens


class Tied(nn.Module):
    """Every stage multiplies with its copy of one weight."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Parameter(torch.eye(WIDTH) + 0.1)
        self.own = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.own(x) @ self.shared)


def mlp(dropout: float) -> nn.Module:
    layers = [nn.Linear(WIDTH, WIDTH), nn.Dropout(dropout), nn.GELU(), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)]
    return nn.Sequential(*layers)


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().mean()


def noisy_error(output: Tensor, target: Tensor) -> Tensor:
    return squared_error(F.dropout(output, 0.2), target)


CASES = ("skip", "multi-output", "tied", "dropout", "recompute")


def two_way(num_ranks: int, num_microbatches: int) -> Program:
    """Three microbatches of four one way, the fourth the other way; weight gradients at the end, last ones first."""
    paths = tuple(range(num_ranks)), tuple(reversed(range(num_ranks)))
    path_of = tuple(int(microbatch % 4 == 3) for microbatch in range(num_microbatches))
    ranks: list[list[Op]] = [[] for _ in range(num_ranks)]
    stages, microbatches = range(num_ranks), range(num_microbatches)
    texts = [f"{stage}F{microbatch}" for microbatch in microbatches for stage in stages]
    texts += [f"{stage}I{microbatch}" for microbatch in microbatches for stage in reversed(stages)]
    texts += [f"{stage}W{microbatch}" for microbatch in reversed(microbatches) for stage in stages]
    for op in map(Op.parse, texts):
        ranks[paths[path_of[op.microbatch]][op.stage]].append(op)
    return Program(TWO_WAY, paths, path_of, tuple(map(tuple, ranks)))


def build(schedule: str, num_ranks: int, num_microbatches: int) -> Program:
    """Make a program, once in a process: some are searched for."""
    key = schedule, num_ranks, num_microbatches
    if key not in PROGRAMS:
        PROGRAMS[key] = (
            two_way(num_ranks, num_microbatches)
            if schedule == TWO_WAY
            else schedules.build(schedule, num_ranks=num_ranks, num_microbatches=num_microbatches)
        )
    return PROGRAMS[key]


def pipeline(
    case: str, schedule: str, num_ranks: int, *, num_microbatches: int | None = None, device: torch.device = DEVICE
) -> Pipeline:
    """Make the pipeline of a case; microbatches differ in size. The same arguments give the same numbers."""
    made = _on_host(case, schedule, num_ranks, num_microbatches)
    made.inputs = [x.to(device) for x in made.inputs]
    made.targets = [y.to(device) for y in made.targets]
    for module in made.modules.values():
        module.to(device)
    return made


def _on_host(case: str, schedule: str, num_ranks: int, num_microbatches: int | None) -> Pipeline:
    num_microbatches = num_microbatches or 2 * num_ranks
    program = build(schedule, num_ranks, num_microbatches)
    if case == "recompute":
        program = passes.recompute(program, range(0, program.num_stages, 2))
    plan = pipert.compile(program)
    last = plan.num_stages - 1
    torch.manual_seed(17)
    sizes = [3 if microbatch % 3 else 2 for microbatch in range(num_microbatches)]
    inputs = [torch.randn(size, WIDTH) for size in sizes]
    targets = [torch.randn(size, WIDTH) for size in sizes]
    if case == "skip":
        modules = {stage: Residual(stage == last) for stage in range(last + 1)}
        return Pipeline(plan, modules, inputs, targets, squared_error)
    if case == "multi-output":
        inputs = [torch.randint(16, (size, 4)) for size in sizes]
        targets = [torch.randn(size, 4, 2 * WIDTH) for size in sizes]
        modules = {stage: Fork(stage == 0, stage == last) for stage in range(last + 1)}
        return Pipeline(plan, modules, inputs, targets, squared_error)
    if case == "tied":
        modules = {stage: Tied() for stage in range(last + 1)}
        tied = [tuple((stage, "shared") for stage in range(last + 1)), ((0, "own.bias"), (last, "own.bias"))]
        return Pipeline(plan, modules, inputs, targets, squared_error, tied)
    modules = {stage: mlp(0.3) for stage in range(last + 1)}
    if case == "dropout":
        return Pipeline(plan, modules, inputs, targets, noisy_error)
    recompute = {stage: ["1", "3"] for stage in range(1, last + 1, 2)}
    return Pipeline(plan, modules, inputs, targets, noisy_error, recompute=recompute)


def gradients(modules: Modules) -> dict[tuple[int, int, str], Tensor | None]:
    return {(*replica, name): p.grad for replica, module in modules.items() for name, p in module.named_parameters()}


def assert_same_bits(found: dict, expected: dict) -> None:
    """Compare named tensors; a value that differs is named."""
    assert found.keys() == expected.keys()
    for key, value in found.items():
        other = expected[key]
        if value is None or other is None:
            assert value is other, f"{key}: {value} against {other}"
        else:
            assert torch.equal(value, other), f"{key} differs by {(value - other).abs().max().item()}"
