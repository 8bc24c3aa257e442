"""Everything that `pipert bench launch` measures: what the host pays for work on a CUDA device."""

from __future__ import annotations

from collections.abc import Callable

from pipert.bench import driver_calls, step_graph, worker
from pipert.bench.figure import Figure

PARTS: dict[str, Callable[[], list[Figure]]] = {
    "driver_calls": driver_calls.host_costs,
    "hops": driver_calls.hops,
    "native_op": lambda: worker.measure("native_op", 1),
    "compute_op": lambda: worker.measure("compute_op", 1),
    "step_graph": step_graph.measure,
    "nvtx": driver_calls.nvtx,
}
