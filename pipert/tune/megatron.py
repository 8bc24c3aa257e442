"""What a tuned plan is compared with: Megatron's interleaved 1F1B on the same profile.

Megatron (Narayanan et al., arXiv 2104.04473, section 2.2) gives every stage the same number of layers, puts the stages
on the ranks in a loop of v chunks, and interleaves only where the microbatches divide by the ranks. Where the layers do
not divide, the first stages get one more here, which Megatron would refuse.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from pipert.costs import tolerated
from pipert.lowering import compile
from pipert.schedules import build
from pipert.sim import simulate
from pipert.tune.machine import Machine
from pipert.tune.partition import even_cut
from pipert.tune.profile import Layer


@dataclasses.dataclass(frozen=True, slots=True)
class Baseline:
    """The best that Megatron's schedule does.

    Attributes:
        num_chunks: v; 1 is plain 1F1B.
        step_time: simulated, in ms.
        fits: whether it keeps the memory limit.
    """

    num_chunks: int
    step_time: float
    fits: bool

    def __str__(self) -> str:
        return f"interleaved 1F1B, v = {self.num_chunks}" if self.num_chunks > 1 else "1F1B (v = 1)"


def megatron(layers: Sequence[Layer], machine: Machine, num_microbatches: int) -> Baseline:
    """Find Megatron's best number of chunks; of those that keep the memory limit, if any does."""
    num_ranks = machine.num_ranks
    limit = tolerated(machine.memory_limit)
    baselines = []
    for chunks in range(1, len(layers) // num_ranks + 1):
        name = "1f1b" if chunks == 1 else "interleaved"
        if chunks > 1 and num_microbatches % num_ranks:
            continue
        program = build(name, num_ranks=num_ranks, num_microbatches=num_microbatches, num_chunks=chunks)
        report = simulate(compile(program), machine.costs(layers, even_cut(len(layers), num_ranks * chunks)))
        baselines.append(Baseline(chunks, report.makespan, max(report.peak_activation) <= limit))
    return min(baselines, key=lambda baseline: (not baseline.fits, baseline.step_time))
