"""One message one way between two ranks: shared memory beside gloo."""

from __future__ import annotations

import secrets
import statistics
import time
from dataclasses import dataclass

import torch
import torch.distributed as dist

from pipert import _core
from pipert.bench.figure import Figure

ROUNDS = 15  # who sleeps on which core is settled anew in each
SPINNING_US = 100_000


@dataclass(frozen=True, slots=True)
class Message:
    """A size, how the receiver waits, and how often a round sends it."""

    name: str
    num_bytes: int
    spin_us: int
    iterations: int
    bar: float


MESSAGES = (
    Message("4 MB", 4 << 20, 0, 30, 0.4),
    Message("4 B, spinning", 4, SPINNING_US, 1000, 0.1),
    Message("4 B, asleep", 4, 0, 400, 0.35),
)


def measure() -> list[Figure]:
    """Return the median time one way, half of a round trip, for every message."""
    return [_compare(message) for message in MESSAGES]


def _compare(message: Message) -> Figure:
    rounds = [(_ours(message), _gloo(message)) for _ in range(ROUNDS + 1)][1:]
    ours, gloo = ([seconds * 1e6 for seconds in side] for side in zip(*rounds, strict=True))
    setting = f"half a round trip; {ROUNDS} rounds of {message.iterations}, beside gloo's send and recv"
    return Figure.of(f"one way, {message.name}", "µs", ours, gloo, bar=message.bar, relative=True, setting=setting)


def _ours(message: Message) -> float:
    session = [secrets.token_hex(8)]
    dist.broadcast_object_list(session)
    return statistics.median(
        _core.channel_benchmark(session[0], dist.get_rank(), message.num_bytes, message.iterations, message.spin_us)
    )


def _gloo(message: Message) -> float:
    data = torch.randint(256, (message.num_bytes,), dtype=torch.uint8)
    first = dist.get_rank() == 0
    dist.barrier()
    times = []
    for _ in range(message.iterations):
        start = time.perf_counter()
        if first:
            dist.send(data, 1)
            dist.recv(data, 1)
        else:
            dist.recv(data, 0)
            dist.send(data, 0)
        times.append((time.perf_counter() - start) / 2)
    return statistics.median(times)
