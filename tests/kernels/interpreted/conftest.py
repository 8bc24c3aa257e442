"""Kernels in Triton's interpreter, on CPU tensors; run by test_gpu_interpreted.py, as it is chosen at import."""

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1]))
assert os.environ.get("TRITON_INTERPRET") == "1", "run tests/kernels/test_gpu_interpreted.py"


@pytest.fixture(autouse=True)
def poisoned():
    """What is allocated holds NaN, until a kernel writes it."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
