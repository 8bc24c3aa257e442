"""Everything that `pipert bench copy` measures: pinned memory to and from a CUDA device, in chunks, and within it.

Ours are the driver's copies out of one arena of page-locked memory; the peer are torch's of as many bytes, from pinned
tensors, on streams of torch's. Chunks are taken one behind the other over an arena far larger than an L2 cache.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipert import _core
from pipert.bench import gpu
from pipert.bench.figure import Figure, Unavailable
from pipert.engine.device import CudaDevice
from pipert.errors import CudaError

CHUNK_BYTES = tuple(1 << shift for shift in range(16, 31, 2))
ARENA_BYTES = 1 << 30
ROUND_BYTES = 256 << 20
MOST_COPIES = 128  # in a round: they fit into the device's queues while it is held
ROUNDS = 9
CUPY_REPEATS = 20


@dataclass(frozen=True, slots=True)
class Way:
    """From where to where: ``"h"`` is the host, ``"d"`` the device."""

    source: str
    target: str


D2H, H2D, D2D = Way("d", "h"), Way("h", "d"), Way("d", "d")


@dataclass(frozen=True, slots=True)
class Case:
    """What is copied at the same time, and the bar on the best chunk beside the peer's best."""

    name: str
    ways: tuple[Way, ...]
    bar: float | None


CASES = {
    "d2h": Case("D2H", (D2H,), 0.95),
    "h2d": Case("H2D", (H2D,), 0.95),
    "both": Case("D2H and H2D at once", (D2H, H2D), 0.9),
    "d2d": Case("D2D", (D2D,), None),
}


def measure(name: str) -> list[Figure]:
    """Return the rates of a case, sums of both ways, for every chunk size and for the best.

    Raises:
        CudaError: something else arrived than what was copied.
    """
    case, device = CASES[name], gpu.device()
    ours: _Side = _Ours(device, case.ways)
    peer = _Torch(device, case.ways) if gpu.has_torch(device) else None
    rates = {chunk_bytes: _rates(ours, peer, case, chunk_bytes) for chunk_bytes in CHUNK_BYTES}
    figures = [
        Figure.of(f"{case.name}, {gpu.name_of(chunk_bytes)}", "GB/s", *rates[chunk_bytes], setting=_setting(peer))
        for chunk_bytes in CHUNK_BYTES
    ]
    best = max(figures, key=lambda figure: figure.ours)
    return [
        Figure(
            f"{case.name}, best chunk",
            "GB/s",
            best.ours,
            max((figure.peer for figure in figures if figure.peer is not None), default=None),
            case.bar,
            relative=True,
            at_least=True,
            setting=f"{best.name}; {_setting(peer)}",
            quartiles=best.quartiles,
        ),
        *figures,
    ]


def _setting(peer: object) -> str:
    beside = "" if peer is None else "; beside torch's copies, best chunk beside best chunk"
    return f"one pinned arena of {gpu.name_of(ARENA_BYTES)}{beside}"


def _rates(ours: _Side, peer: _Side | None, case: Case, chunk_bytes: int) -> tuple[list[float], list[float]]:
    """Return GB/s per round, of ours and of the peer, in turns."""
    copies = max(2, min(MOST_COPIES, ROUND_BYTES // chunk_bytes))
    num_bytes = copies * chunk_bytes * len(case.ways)
    rates: tuple[list[float], list[float]] = [], []
    for number in range(ROUNDS + 1):
        for side, found in zip((ours, peer), rates, strict=True):
            if side is None:
                continue
            ns = side.ns(chunk_bytes, copies, number * copies)
            if number > 0:  # the first one warms up
                found.append(num_bytes / ns)
    ours.check(chunk_bytes)
    return rates


class _Side:
    """Copies on a stream for each way."""

    def __init__(self, num_ways: int) -> None:
        self._timer = _core.CudaTimer()
        self._streams = [self._new_stream() for _ in range(num_ways)]

    def ns(self, chunk_bytes: int, copies: int, first: int) -> int:
        """Copy so many chunks each way, beginning with that number; return the device's time."""
        self._timer.start(self._streams, True)
        try:
            self._enqueue(chunk_bytes, copies, first)
            self._timer.stop(self._streams)
        finally:
            self._timer.release()
        return self._timer.ns()

    def check(self, chunk_bytes: int) -> None:
        """Compare the first chunk's bytes at both ends."""

    def _new_stream(self) -> int:
        raise NotImplementedError

    def _enqueue(self, chunk_bytes: int, copies: int, first: int) -> None:
        raise NotImplementedError


class _Ours(_Side):
    def __init__(self, device: CudaDevice, ways: Sequence[Way]) -> None:
        self._owners: list[_core.CudaStream] = []
        super().__init__(len(ways))
        self._ends = [(_arena(device, way.source), _arena(device, way.target)) for way in ways]
        for number, (source, _) in enumerate(self._ends):
            source.copy_(gpu.random_bytes(device, ARENA_BYTES, number))
        gpu.settle(device)

    def check(self, chunk_bytes: int) -> None:
        for source, target in self._ends:
            if not torch.equal(source[:chunk_bytes].cpu(), target[:chunk_bytes].cpu()):
                raise CudaError(f"a copy of {gpu.name_of(chunk_bytes)} brought something else than what was there")

    def _new_stream(self) -> int:
        self._owners.append(_core.CudaStream())
        return self._owners[-1].handle

    def _enqueue(self, chunk_bytes: int, copies: int, first: int) -> None:
        for (source, target), stream in zip(self._ends, self._streams, strict=True):
            to, from_ = target.data_ptr(), source.data_ptr()
            _core.cuda_copies(to, from_, ARENA_BYTES, chunk_bytes, first, copies, stream)


class _Torch(_Side):
    def __init__(self, device: CudaDevice, ways: Sequence[Way]) -> None:
        self._owners: list[Any] = []
        self._device = device
        super().__init__(len(ways))
        self._ends = [(self._tensor(way.source), self._tensor(way.target)) for way in ways]
        for number, (source, _) in enumerate(self._ends):
            source.copy_(gpu.random_bytes(device, ARENA_BYTES, number))
        gpu.settle(device)

    def _tensor(self, place: str) -> Tensor:
        if place == "d":
            return self._device.empty(ARENA_BYTES)
        return torch.empty(ARENA_BYTES, dtype=torch.uint8, pin_memory=True)

    def _new_stream(self) -> int:
        self._owners.append(torch.cuda.Stream(self._device.torch_device))  # type: ignore[no-untyped-call]
        return int(self._owners[-1].cuda_stream)

    def _enqueue(self, chunk_bytes: int, copies: int, first: int) -> None:
        places = ARENA_BYTES // chunk_bytes
        for (source, target), stream in zip(self._ends, self._owners, strict=True):
            with torch.cuda.stream(stream):
                for number in range(first, first + copies):
                    chunk = slice(number % places * chunk_bytes, (number % places + 1) * chunk_bytes)
                    target[chunk].copy_(source[chunk], non_blocking=True)


def _arena(device: CudaDevice, place: str) -> Tensor:
    """Return ``[ARENA_BYTES]`` bytes in one piece."""
    if place == "d":
        return device.empty(ARENA_BYTES)
    return torch.frombuffer(_core.PinnedMemory(ARENA_BYTES), dtype=torch.uint8)


def cupy_within_device() -> list[Figure]:
    """Return CuPy's rate within the device, by its own profiler.

    Raises:
        Unavailable: CuPy is not installed.
    """
    try:
        import cupy
        from cupyx.profiler import benchmark
    except ImportError as error:
        raise Unavailable(f"CuPy is missing ({error}): pip install 'pipert[cuda]'") from None
    gpu.device()
    source = cupy.random.randint(0, 256, ARENA_BYTES, dtype=cupy.uint8)
    target = cupy.empty_like(source)
    result = benchmark(cupy.copyto, (target, source), n_repeat=CUPY_REPEATS, n_warmup=3)
    rates = [ARENA_BYTES / seconds / 1e9 for seconds in result.gpu_times[0].tolist()]
    setting = f"cupy.copyto of {gpu.name_of(ARENA_BYTES)}, by cupyx.profiler"
    return [Figure.of("D2D, CuPy", "GB/s", rates, setting=setting)]


PARTS: dict[str, Callable[[], list[Figure]]] = {
    **{name: functools.partial(measure, name) for name in CASES},
    "d2d_by_cupy": cupy_within_device,
}
