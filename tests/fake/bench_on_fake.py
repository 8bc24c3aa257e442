"""Measures on the CUDA driver that runs on the host, in small.

``bench_on_fake.py OUT AREA/PART ...`` writes the figures of these parts as JSON. With RANK in the environment,
``bench_on_fake.py OUT MODULE`` is one rank of :mod:`pipert.bench.worker`.
"""

import importlib
import json
import os
import pathlib
import sys

import as_cuda

DEVICE = as_cuda.install("local")  # with an NCCL, too

from pipert.bench import compute_op, copy, driver_calls, gpu, native_op, pair, worker  # noqa: E402
from pipert.bench.figure import as_json  # noqa: E402

SMALL = {
    compute_op: {"NUM_MICROBATCHES": 2, "ROUNDS": 2, "STEPS_A_ROUND": 1},
    copy: {"CHUNK_BYTES": (1 << 12, 1 << 14), "ARENA_BYTES": 1 << 16, "ROUND_BYTES": 1 << 16, "ROUNDS": 2},
    driver_calls: {"CALLS": 20, "HOPS": 8, "ROUNDS": 3, "NVTX_ITERATIONS": 1000},
    native_op: {"NUM_RANKS": 2, "NUM_MICROBATCHES": 2, "ROUNDS": 2},
    pair: {
        "PING_PONGS": 2,
        "ROUNDS": 2,
        "MOST_MESSAGES": 4,
        "LATENCY_BYTES": (4, 1000),
        "BANDWIDTH_BYTES": (1 << 16,),
        "BAR_FROM_BYTES": 1 << 16,
    },
}


def install():
    gpu.device = lambda: DEVICE
    for module, sizes in SMALL.items():
        for name, value in sizes.items():
            assert hasattr(module, name)
            setattr(module, name, value)


def figures_of(part):
    area, name = part.split("/")
    return importlib.import_module(f"pipert.bench.{area}").PARTS[name]()


if __name__ == "__main__":
    install()
    out, *parts = sys.argv[1:]
    if "RANK" in os.environ:
        worker.main(*parts, out)
    else:
        pathlib.Path(out).write_text(json.dumps({part: as_json(figures_of(part)) for part in parts}))
