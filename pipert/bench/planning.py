"""The simulator and the plan loader, on a plan of 100,000 ops."""

from __future__ import annotations

import pathlib
import tempfile
import time
from collections.abc import Callable

import pipert
from pipert.bench.figure import Figure

NUM_RANKS = 8
NUM_MICROBATCHES = 970
ROUNDS = 5


def measure() -> list[Figure]:
    """Return simulated ops per second, and the time to load and verify the plan's file."""
    program = pipert.schedules.build("zb-v", num_ranks=NUM_RANKS, num_microbatches=NUM_MICROBATCHES)
    plan = pipert.compile(program)
    costs = pipert.Costs.per_rank(F=1.0, I=1.0, W=1.0, p2p=0.1)
    setting = f"zb-v, {NUM_RANKS} ranks, {plan.num_ops:,} ops"
    simulated = [plan.num_ops / seconds for seconds in _seconds(lambda: pipert.simulate(plan, costs))]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "plan.json"
        plan.save(path)
        loaded = _seconds(lambda: pipert.Plan.load(path))
    return [
        Figure.of("simulator", "ops/s", simulated, bar=1e6, at_least=True, setting=setting),
        Figure.of("load and verify a plan file", "s", loaded, bar=1.0, setting=setting),
    ]


def _seconds(call: Callable[[], object]) -> list[float]:
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times
