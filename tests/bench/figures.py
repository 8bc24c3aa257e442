"""Runs a part of a benchmark once: its figures and the machine stand in ``extra_info``."""

import pytest
from rich.console import Console

from pipert.bench import gpu, machine
from pipert.bench.figure import Unavailable, as_json, as_table
from pipert.errors import ConfigError, CudaError


def need_gpu():
    try:
        gpu.device()
    except (CudaError, ConfigError) as reason:
        pytest.skip(str(reason))


def measure(benchmark, part):
    """One round is the whole part: parts alternate both sides and take medians themselves."""
    found = machine.describe()
    before = machine.gpu_state()
    try:
        figures = benchmark.pedantic(part, rounds=1)
    except Unavailable as reason:
        pytest.skip(str(reason))
    benchmark.extra_info["figures"] = as_json(figures)
    benchmark.extra_info["machine"] = machine.with_states(found, before)
    print()
    Console(highlight=False, width=160).print(as_table(figures))
