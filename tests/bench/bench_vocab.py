"""Vocabulary-parallel output layers, for pytest-benchmark: `make bench`.

Without a GPU: what stands in for the kernels on a CPU, beside torch's own layer and loss there.
"""

import time

import pytest
import torch
from figures import measure, need_gpu

from pipert.bench.figure import Figure
from pipert.bench.vocab import PARTS
from pipert.bench.vocab.batch import random_batch
from pipert.bench.vocab.exact import exact
from pipert.bench.vocab.ours import Ours
from pipert.bench.vocab.peers import PEERS
from pipert.bench.vocab.shapes import Layer, Shape

ROUNDS = 9
CPU_SHAPE = Shape(Layer("V=32k", 256, 32000), 1, 256)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("part", PARTS)
def test_part(benchmark, part):
    need_gpu()
    measure(benchmark, PARTS[part])


def reference():
    batch = random_batch(CPU_SHAPE, torch.device("cpu"), torch.float32)
    expected, steps = exact(batch), (Ours(batch).step, PEERS["torch"].side(batch).step)
    errors = [expected.errors_of(step()) for step in steps]
    times = [[], []]
    for _ in range(ROUNDS):
        for of_side, step in zip(times, steps, strict=True):
            begin = time.perf_counter()
            step()
            of_side.append((time.perf_counter() - begin) * 1e3)
    setting = f"fp32, N={CPU_SHAPE.num_tokens} D=256 V=32000; peer: torch's linear and cross_entropy"
    figures = [Figure.of("S+T of the reference on the CPU", "ms", *times, setting=setting)]
    for what in ("loss", "input_grad", "weight_grad"):
        ours, theirs = (getattr(each, what) for each in errors)
        figures.append(Figure(f"error, {what}", "", ours, theirs, bar=1e-5, setting=setting))
    return figures


def test_reference(benchmark):
    measure(benchmark, reference)
