"""Host time of the native executor beyond its CUDA calls, in a process whose driver calls are all timed."""

from __future__ import annotations

import time

import pipert
from pipert import _core
from pipert.bench import gpu
from pipert.bench.bare_plan import BarePlan
from pipert.bench.figure import Figure
from pipert.engine.device import CudaDevice

NUM_RANKS = 8
NUM_MICROBATCHES = 8
MESSAGE_BYTES = 1024
ROUNDS = 31
TRANSPORTS = ("local", "ipc")


def measure() -> list[Figure]:
    """Return the time per op of a plan whose ops compute nothing, by handlers and by graphs that do nothing."""
    _core.time_cuda_calls()
    device = gpu.device()
    return [figure for transport in TRANSPORTS for figure in _of(device, transport)]


def _of(device: CudaDevice, transport: str) -> list[Figure]:
    plan = pipert.compile(pipert.schedules.build("zb-v", num_ranks=NUM_RANKS, num_microbatches=NUM_MICROBATCHES))
    message = gpu.random_bytes(device, MESSAGE_BYTES, seed=0)
    stream, graph = _core.CudaStream(), _core.EmptyCudaGraph()
    with BarePlan(plan, device, transport, lambda _: message) as bare:
        handlers = _steps(bare, stream)
        bare.replay(graph.handle, stream.handle)
        bare.wait()
        replayed = _steps(bare, stream)
        bare.check()
    return [
        *_figures(f"native op, {transport}", handlers, bare, "handlers that only post what is sent"),
        *_figures(f"native op replayed, {transport}", replayed, bare, "empty graphs, no Python"),
    ]


def _steps(bare: BarePlan, stream: _core.CudaStream) -> list[tuple[int, int, int]]:
    """Return, per step, the host's ns beyond CUDA calls and in them, and how many they were."""
    steps = []
    for number in range(ROUNDS + 1):
        _core.take_cuda_call_times()
        begin_ns = time.perf_counter_ns()
        bare.step(stream.handle)
        took_ns = time.perf_counter_ns() - begin_ns
        calls = _core.take_cuda_call_times().values()
        in_calls_ns = sum(ns for _, ns in calls)
        bare.wait()
        if number > 0:  # the first one warms up
            steps.append((took_ns - in_calls_ns, in_calls_ns, sum(count for count, _ in calls)))
    return steps


def _figures(name: str, steps: list[tuple[int, int, int]], bare: BarePlan, what: str) -> list[Figure]:
    own, in_calls = ([step[side] / bare.num_ops / 1e3 for step in steps] for side in range(2))
    calls = steps[-1][2] / bare.num_ops
    setting = (
        f"zb-v, {NUM_RANKS} ranks in one process, {bare.num_ops} ops a step, {what}; "
        f"{calls:.2f} CUDA calls an op, each timed on its way"
    )
    return [
        Figure.of(f"{name}, beyond its CUDA calls", "µs", own, bar=2.0, setting=setting),
        Figure.of(f"{name}, in its CUDA calls", "µs", in_calls, setting=setting),
    ]
