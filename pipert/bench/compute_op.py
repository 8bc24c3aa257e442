"""What the engine costs per compute op on a CUDA device, beyond the module's own launches."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable

import pipert
from pipert.bench import gpu, hand
from pipert.bench.figure import Figure
from pipert.bench.models import tiny
from pipert.bench.peer import PeerPipeline
from pipert.engine import Engine
from pipert.engine.device import CudaDevice

NUM_MICROBATCHES = 8
NUM_STAGES = 3
ROUNDS = 40
STEPS_A_ROUND = 4


def measure() -> list[Figure]:
    """Return the overhead per F or B over a hand-written loop of the same modules, alone and beside the peer's."""
    device = gpu.device()
    work = tiny(range(NUM_STAGES), NUM_STAGES, NUM_MICROBATCHES).to(device.torch_device)
    program = pipert.schedules.build(
        "interleaved", num_ranks=1, num_microbatches=NUM_MICROBATCHES, num_chunks=NUM_STAGES
    )
    num_ops = len(program.ranks[0])
    loop = hand.Loop(copy.deepcopy(work), NUM_MICROBATCHES, split=False)
    theirs = copy.deepcopy(work.stages)
    peer = PeerPipeline("interleaved", theirs, NUM_STAGES, NUM_MICROBATCHES, work.loss_fn, device=device.torch_device)
    with Engine(pipert.compile(program), work.stages, work.loss_fn) as engine:
        sides = (
            loop.step,
            lambda: engine.step(work.inputs, work.targets),
            lambda: peer.step(work.inputs, work.targets),
        )
        rounds = [[_step_us(device, side) / num_ops for side in sides] for _ in range(ROUNDS + 1)][1:]
    ours, peers = ([times[side] - times[0] for times in rounds] for side in (1, 2))
    by_hand = statistics.median(times[0] for times in rounds)
    setting = f"{NUM_STAGES} stages on one rank, {num_ops} F and B; hand-written loop {by_hand:.1f} µs an op"
    beside = f"{setting}; the bar is an eighth"
    return [
        Figure.of("overhead per op, F/B", "µs", ours, bar=8.0, setting=setting),
        Figure.of("overhead per op, F/B, beside the peer", "µs", ours, peers, bar=1 / 8, relative=True, setting=beside),
    ]


def _step_us(device: CudaDevice, step: Callable[[], object]) -> float:
    """Return the time of a step: the layers are so small that the host is what it waits for."""
    gpu.settle(device)
    start = time.perf_counter()
    for _ in range(STEPS_A_ROUND):
        step()
    gpu.settle(device)
    return (time.perf_counter() - start) / STEPS_A_ROUND * 1e6
