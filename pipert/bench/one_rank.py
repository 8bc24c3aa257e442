"""What the runtime costs per compute op on one rank, where the compute is next to nothing."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable

import pipert
from pipert.bench import hand
from pipert.bench.figure import Figure
from pipert.bench.models import tiny
from pipert.bench.peer import PeerPipeline

NUM_MICROBATCHES = 8
ROUNDS = 25
STEPS_A_ROUND = 4


def measure() -> list[Figure]:
    """Return the overhead per op over a hand-written loop, for full and for split backwards."""
    return [*_overhead("interleaved", num_stages=3, split=False), *_overhead("zb-v", num_stages=2, split=True)]


def _overhead(schedule: str, *, num_stages: int, split: bool) -> list[Figure]:
    work = tiny(range(num_stages), num_stages, NUM_MICROBATCHES)
    program = pipert.schedules.build(schedule, num_ranks=1, num_microbatches=NUM_MICROBATCHES, num_chunks=num_stages)
    num_ops = len(program.ranks[0])
    modules = list(copy.deepcopy(work.stages).values())
    peer = PeerPipeline(schedule, copy.deepcopy(work.stages), num_stages, NUM_MICROBATCHES, work.loss_fn)
    with pipert.Engine(pipert.compile(program), work.stages, work.loss_fn) as engine:
        sides: dict[str, Callable[[], object]] = {
            "hand": lambda: hand.step(modules, work.inputs, work.targets, NUM_MICROBATCHES, work.loss_fn, split=split),
            "ours": lambda: engine.step(work.inputs, work.targets),
            "peer": lambda: peer.step(work.inputs, work.targets),
        }
        rounds = [_round(sides) for _ in range(ROUNDS + 1)][1:]
    ours, theirs = (
        statistics.median(times[side] - times["hand"] for times in rounds) / num_ops for side in ("ours", "peer")
    )
    loop = statistics.median(times["hand"] for times in rounds) / num_ops
    setting = f"{schedule}, {num_stages} stages, {num_ops} ops; hand-written loop {loop:.1f} µs an op"
    if split:
        return [Figure("overhead per op, one rank, F/I/W", "µs", ours, theirs, bar=10.0, setting=setting)]
    return [Figure("overhead per op, one rank, F/B", "µs", ours, theirs, bar=0.25, relative=True, setting=setting)]


def _round(sides: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Return the CPU time of one step of each side, in µs: one thread works, and other processes do not disturb it."""
    times = {}
    for side, step in sides.items():
        start = time.process_time()
        for _ in range(STEPS_A_ROUND):
            step()
        times[side] = (time.process_time() - start) / STEPS_A_ROUND * 1e6
    return times
