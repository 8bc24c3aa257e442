"""A step that the engine has captured beside the same step written by hand and captured with torch.cuda.graph."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable

import torch
from torch import nn

import pipert
from pipert.bench import gpu, hand
from pipert.bench.figure import Figure, Unavailable
from pipert.bench.models import Workload, demo
from pipert.engine import Engine

NUM_MICROBATCHES = 8
NUM_STAGES = 2
ROUNDS = 21
STEPS_A_ROUND = 5
WARM_UP_STEPS = 5


def measure() -> list[Figure]:
    """Return the time of a captured step beside the one by hand, in turns.

    Raises:
        Unavailable: torch does not compute on this device.
    """
    device = gpu.device()
    if not gpu.has_torch(device):
        raise Unavailable("a captured step needs a device that torch computes on")
    work = demo(range(NUM_STAGES), NUM_STAGES, NUM_MICROBATCHES).to(device.torch_device)
    program = pipert.schedules.build(
        "interleaved", num_ranks=1, num_microbatches=NUM_MICROBATCHES, num_chunks=NUM_STAGES
    )
    by_hand = _captured_by_hand(copy.deepcopy(work))
    with Engine(pipert.compile(program), work.stages, work.loss_fn, cuda_graph=True, trace=False) as engine:

        def ours() -> None:
            _drop_gradients(work.stages.values())
            engine.step(work.inputs, work.targets)

        for _ in range(WARM_UP_STEPS):
            ours()
            by_hand()
        rounds = [(_step_ms(ours), _step_ms(by_hand)) for _ in range(ROUNDS)]
    setting = f"{work.name}; {NUM_STAGES} stages on one rank, {NUM_MICROBATCHES} microbatches; beside torch.cuda.graph"
    times = zip(*rounds, strict=True)
    return [Figure.of("step as one graph", "ms", *map(list, times), bar=1.01, relative=True, setting=setting)]


def _captured_by_hand(work: Workload) -> Callable[[], None]:
    """Return what copies a batch into place and launches the graph of a step of the plain loop."""
    held = Workload(work.name, work.stages, work.inputs.clone(), work.targets.clone(), work.loss_fn)
    loop = hand.Loop(held, NUM_MICROBATCHES, split=False)
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(side):
        for _ in range(WARM_UP_STEPS):
            loop.step()
    torch.cuda.synchronize()
    _drop_gradients(work.stages.values())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loop.step()

    def step() -> None:
        held.inputs.copy_(work.inputs)
        held.targets.copy_(work.targets)
        graph.replay()

    return step


def _drop_gradients(stages: Iterable[nn.Module]) -> None:
    for stage in stages:
        for parameter in stage.parameters():
            parameter.grad = None


def _step_ms(step: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(STEPS_A_ROUND):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / STEPS_A_ROUND * 1e3
