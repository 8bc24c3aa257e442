"""Stages that only sleep: a schedule's measured bubble beside the simulated one."""

from __future__ import annotations

import statistics

import torch.distributed as dist

import pipert
from pipert.bench.figure import Figure
from pipert.stages import Timed
from pipert.trace import Trace
from pipert.trace import measure as measure_trace

NUM_MICROBATCHES = 8
SCHEDULES = ("1f1b", "zb-h1", "zb-v")
RANK_MS = 12.0  # F, I and W of a rank's whole share
STEPS = 5


def measure() -> list[Figure]:
    """Return, per schedule, how far the measured bubble is from the simulated."""
    return [_bubbles(schedule) for schedule in SCHEDULES]


def _bubbles(schedule: str) -> Figure:
    program = pipert.schedules.build(schedule, num_ranks=dist.get_world_size(), num_microbatches=NUM_MICROBATCHES)
    plan = pipert.compile(program)
    chunk_ms = RANK_MS / (program.num_stages // program.num_ranks)
    stages = {
        stage: Timed(F=chunk_ms, I=chunk_ms, W=chunk_ms, stage=stage, num_stages=program.num_stages)
        for stage in program.chunks(dist.get_rank())
    }
    records = []
    with pipert.Engine(plan, stages, process_group=dist.group.WORLD) as engine:
        for _ in range(STEPS + 1):
            dist.barrier()
            records.append(engine.step().records)
    simulated = pipert.simulate(plan, pipert.Costs.per_rank(F=RANK_MS, I=RANK_MS, W=RANK_MS)).bubble_rate
    everybodys: list[list[bytes]] = [[]] * dist.get_world_size()
    dist.all_gather_object(everybodys, records[1:])
    measured = statistics.median(
        measure_trace(Trace.from_records(plan, step)).bubble_rate for step in zip(*everybodys, strict=True)
    )
    setting = f"{NUM_MICROBATCHES} microbatches, F = I = W = {RANK_MS:g} ms; {measured:.4f} and {simulated:.4f}"
    return Figure(f"bubble, measured - simulated, {schedule}", "", abs(measured - simulated), bar=0.02, setting=setting)
