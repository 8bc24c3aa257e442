"""A bf16 matrix product beside messages of about 50 GB/s: how much longer it takes."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from pipert import _core
from pipert.bench import gpu
from pipert.bench.bare_plan import BarePlan
from pipert.bench.figure import Figure, Unavailable
from pipert.bench.pair import one_way
from pipert.engine.device import CudaDevice

SIZE = 8192
PRODUCTS = 20  # in a round
ROUNDS = 15
MESSAGE_BYTES = 8 << 20
MESSAGES = 8  # in a step; more than fits into an L2 cache
BYTES_PER_S = 50e9
TRANSPORTS = ("local", "ipc")


def measure() -> list[Figure]:
    """Return the product's loss beside each transport.

    Raises:
        Unavailable: torch does not compute on this device.
    """
    device = gpu.device()
    if not gpu.has_torch(device):
        raise Unavailable("a matrix product needs a device that torch computes on")
    return [_beside(device, transport) for transport in TRANSPORTS]


def _beside(device: CudaDevice, transport: str) -> Figure:
    a, b = (torch.randn(SIZE, SIZE, device=device.torch_device, dtype=torch.bfloat16) for _ in range(2))
    product = torch.empty_like(a)
    sources = [gpu.random_bytes(device, MESSAGE_BYTES, seed) for seed in range(MESSAGES)]
    plan = one_way(MESSAGES)
    stream = _core.CudaStream()
    losses, rates = [], []

    def multiply() -> None:
        for _ in range(PRODUCTS):
            torch.matmul(a, b, out=product)

    def send() -> None:
        bare.wait()  # so that what counts as sent has been, but for a step
        bare.step(stream.handle)

    with BarePlan(plan, device, transport, lambda row: sources[plan.ops[row].microbatch]) as bare:
        bare.step(stream.handle)
        _timed(multiply, lambda: None)
        for _ in range(ROUNDS):
            alone_ms, _ = _timed(multiply, lambda: None)
            beside_ms, num_steps = _timed(multiply, send)
            losses.append(100 * (beside_ms / alone_ms - 1))
            rates.append(num_steps * MESSAGES * MESSAGE_BYTES / beside_ms / 1e6)
        bare.wait()
        bare.check()
    tera = 2 * SIZE**3 * PRODUCTS / alone_ms / 1e9
    setting = (
        f"bf16, {SIZE} cubed, {tera:.0f} TFLOP/s alone; beside {min(rates):.0f} to {max(rates):.0f} GB/s of messages "
        f"of {gpu.name_of(MESSAGE_BYTES)} within the device"
    )
    return Figure.of(f"loss of a GEMM beside {transport}", "%", losses, bar=3.0, setting=setting)


def _timed(work: Callable[[], None], step: Callable[[], None]) -> tuple[float, int]:
    """Enqueue ``work``, and call ``step`` at the wanted rate until it is done; return its ms and the calls."""
    period_s = MESSAGES * MESSAGE_BYTES / BYTES_PER_S
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    begin.record()
    work()
    end.record()
    start, num_steps = time.perf_counter(), 0
    while not end.query():  # type: ignore[no-untyped-call]
        if time.perf_counter() - start >= num_steps * period_s:
            step()
            num_steps += 1
    return begin.elapsed_time(end), num_steps
