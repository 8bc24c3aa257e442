"""What the CUDA driver's calls cost the host, and how long the device takes from one stream to another."""

from __future__ import annotations

from pipert import _core
from pipert.bench import gpu
from pipert.bench.figure import Figure, Unavailable
from pipert.errors import ConfigError

CALLS = 200  # in a round
HOPS = 64
ROUNDS = 31
NVTX_ITERATIONS = 1_000_000

_WAYS = {
    "event": "an event that the one records and the other waits for",
    "host word": "a word of page-locked host memory that the one writes and the other waits for, as the ipc edges have",
    "device word": "the same in device memory",
}


def host_costs() -> list[Figure]:
    """Return the host's time in each call, and that of a round trip to the device."""
    gpu.device()
    setting = f"{ROUNDS} rounds of {CALLS} on an idle device"
    figures = [
        Figure.of(call, "µs", _us(_core.cuda_call_ns(call, CALLS, ROUNDS)), setting=setting)
        for call in _core.cuda_timed_calls()
    ]
    round_trip = _us(_core.cuda_round_trip_ns(ROUNDS))
    setting = "the host writes a word that a stream waits for, and sees what that stream writes then"
    return [*figures, Figure.of("round trip of the host", "µs", round_trip, setting=setting)]


def hops() -> list[Figure]:
    """Return the device's time from a stream to another that waits for it."""
    gpu.device()
    return [
        Figure.of(f"hop by {way}", "µs", _us(_core.cuda_hop_ns(way, HOPS, ROUNDS)), setting=f"{setting}; {HOPS} hops")
        for way, setting in _WAYS.items()
    ]


def nvtx() -> list[Figure]:
    """Return what showing an op to NVTX costs, where it is off and where it is on.

    Raises:
        Unavailable: this build knows no NVTX.
    """
    try:
        cost = _core.nvtx_benchmark(NVTX_ITERATIONS)
    except ConfigError as error:
        raise Unavailable(str(error)) from None
    setting = f"beyond an empty loop of {cost['loop']:.2f} ns; {NVTX_ITERATIONS:,} turns"
    return [
        Figure("NVTX range, off", "ns", cost["off"] - cost["loop"], bar=1.0, setting=setting),
        Figure("NVTX range, on, no profiler", "ns", cost["on"] - cost["loop"], bar=300.0, setting=setting),
    ]


def _us(nanoseconds: list[float]) -> list[float]:
    return [ns / 1e3 for ns in nanoseconds]
