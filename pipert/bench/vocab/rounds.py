"""Times in turns, with cold caches, and peak memory, on a CUDA device."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

Work = Callable[[], object]

EVICTED_BYTES = 1 << 30
"""Rewritten before each run: far more than any L2 cache holds."""
REWRITES = 4
"""How often: the host gets ahead meanwhile, so that its pace does not count."""


def in_turns(works: Mapping[str, Work], num_rounds: int) -> dict[str, list[float]]:
    """Run all works by turns, so many times each after a first one that does not count; return the device's ms of each.

    What a work enqueues must be on the current stream. One that waits for the device pays for it.
    """
    scratch = torch.ones(EVICTED_BYTES // 4, device="cuda")
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(num_rounds + 1):
        for name, work in works.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
            for _ in range(REWRITES):
                scratch.mul_(-1)
            begin.record()
            work()
            end.record()
            end.synchronize()
            if number > 0:
                times[name].append(begin.elapsed_time(end))
    return times


def extra_bytes(work: Work) -> int:
    """Run a work; return the most memory that it held at once beside what it was given and what it returns."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    result = work()
    torch.cuda.synchronize()
    extra = torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
    del result
    return extra
