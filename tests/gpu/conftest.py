"""Tests on a CUDA device: deterministic, and each with the device as it found it."""

import gc
import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before cuBLAS starts
import pytest
import torch

from pipert import _core


def pytest_collection_modifyitems(config, items):
    """Plain `pytest` skips these tests where there is no device; under `-m gpu` that is a failure."""
    if "gpu" in config.option.markexpr or (_core.cuda_device_count() and torch.cuda.is_available()):
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and a torch that can use it"))


@pytest.fixture(autouse=True)
def _deterministic(request):
    """The bits of two runs are compared, so sums must not depend on when their parts were ready."""
    if not request.node.get_closest_marker("gpu"):
        yield
        return
    torch.cuda.init()  # says why, where there is no device
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)
    torch.cuda.synchronize()
    gc.collect()
    torch.cuda.empty_cache()


@pytest.fixture
def device():
    return torch.device("cuda", torch.cuda.current_device())
