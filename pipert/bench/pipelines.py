"""Four ranks: both runtimes in the same processes, alternating, over the same process group."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

import pipert
from pipert.bench.figure import Figure
from pipert.bench.models import Workload, demo, medium, tiny
from pipert.bench.peer import PeerPipeline
from pipert.ir import Program

NUM_MICROBATCHES = 8
SCHEDULES = ("1f1b", "zb-v")


@dataclass(frozen=True, slots=True)
class Cost:
    """By round: a step's wall time, from the first rank's start to the last one's end; the CPU time of an op."""

    step_ms: list[float]
    cpu_us_per_op: list[float]


def measure() -> list[Figure]:
    """Return CPU time per op for tiny layers, and step times at two larger sizes."""
    figures = []
    for schedule in SCHEDULES:
        ours, peer, setting = _compare(schedule, tiny, rounds=9, steps=6)
        name = f"CPU per op, four ranks, {schedule}"
        figures.append(
            Figure.of(name, "µs", ours.cpu_us_per_op, peer.cpu_us_per_op, bar=0.5, relative=True, setting=setting)
        )
        figures.append(Figure.of(f"step, tiny, {schedule}", "ms", ours.step_ms, peer.step_ms, setting=setting))
    for size, workload, rounds, steps, bar in (("≤ 2 ms an op", medium, 9, 3, 0.95), ("demo model", demo, 9, 1, 1.0)):
        for schedule in SCHEDULES:
            ours, peer, setting = _compare(schedule, workload, rounds=rounds, steps=steps)
            cpu_ms = [statistics.median(side.cpu_us_per_op) / 1000 for side in (ours, peer)]
            setting += f"; {cpu_ms[0]:.2f} and {cpu_ms[1]:.2f} ms CPU an op"
            name = f"step, {size}, {schedule}"
            figures.append(Figure.of(name, "ms", ours.step_ms, peer.step_ms, bar=bar, relative=True, setting=setting))
    return figures


def _compare(
    schedule: str, build: Callable[[list[int], int, int], Workload], *, rounds: int, steps: int
) -> tuple[Cost, Cost, str]:
    program = pipert.schedules.build(schedule, num_ranks=dist.get_world_size(), num_microbatches=NUM_MICROBATCHES)
    stages = list(program.chunks(dist.get_rank()))
    work = build(stages, program.num_stages, NUM_MICROBATCHES)
    inputs = work.inputs if 0 in stages else None
    targets = work.targets if program.num_stages - 1 in stages else None
    peer = PeerPipeline(schedule, copy.deepcopy(work.stages), program.num_stages, NUM_MICROBATCHES, work.loss_fn)
    plan = pipert.compile(program)
    with pipert.Engine(plan, work.stages, work.loss_fn, process_group=dist.group.WORLD) as engine:
        losses = engine.step(inputs, targets).losses
        _require_equal(losses, peer.step(inputs, targets))
        sides = (lambda: engine.step(inputs, targets), lambda: peer.step(inputs, targets))
        spans = _alternate(sides, rounds, steps)
        dist.barrier()
    ours, theirs = (_cost(spans[:, :, side], steps, _num_ops(program)) for side in range(2))
    return ours, theirs, f"{work.name}, {NUM_MICROBATCHES} microbatches"


def _require_equal(ours: Tensor | None, theirs: Sequence[Tensor] | None) -> None:
    """Both sides must have computed the same thing, or their times say nothing."""
    if ours is None or theirs is None:
        return
    torch.testing.assert_close(ours, torch.stack([loss.detach() for loss in theirs]))


def _alternate(sides: tuple[Callable[[], object], ...], rounds: int, steps: int) -> Tensor:
    """Return (start, end, CPU) in ns, [rank, round, side, 3]; who goes first changes every round."""
    spans = torch.zeros(rounds, len(sides), 3, dtype=torch.int64)
    for number in range(rounds):
        for side in sorted(range(len(sides)), reverse=bool(number % 2)):
            dist.barrier()
            start, cpu = time.monotonic_ns(), time.process_time_ns()
            for _ in range(steps):
                sides[side]()
            end = time.monotonic_ns()
            spans[number, side] = torch.tensor([start, end, time.process_time_ns() - cpu])
    gathered = [torch.empty_like(spans) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, spans)
    return torch.stack(gathered)


def _cost(spans: Tensor, steps: int, num_ops: int) -> Cost:
    """Reduce one side's [rank, round, 3]."""
    walls = spans[:, :, 1].amax(0) - spans[:, :, 0].amin(0)
    cpus = spans[:, :, 2].sum(0)
    return Cost(
        step_ms=[wall / steps / 1e6 for wall in walls.tolist()],
        cpu_us_per_op=[cpu / steps / num_ops / 1e3 for cpu in cpus.tolist()],
    )


def _num_ops(program: Program) -> int:
    return sum(map(len, program.ranks))
