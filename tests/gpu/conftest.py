"""Tests on a CUDA device: deterministic, and each with the device as it found it.

With PIPERT_TEST_DEVICE=as-cuda (see where.py) those that need no kernels run on the stand-in for a device.
"""

import gc
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "multiprocess"))
from where import DEVICE, WHERE, cuda_device

from pipert import _core

AS_CUDA = WHERE == "as-cuda"


def pytest_configure(config):
    config.addinivalue_line("markers", "kernels: needs a device that computes, not the stand-in")


def pytest_collection_modifyitems(config, items):
    """Plain `pytest` skips these tests where there is no device; under `-m gpu` that is a failure."""
    here = [item for item in items if item.get_closest_marker("gpu")]
    if AS_CUDA:
        here = [item for item in here if item.get_closest_marker("kernels")]
        reason = "the stand-in for a device runs no kernels"
    elif "gpu" in config.option.markexpr or (_core.cuda_device_count() and torch.cuda.is_available()):
        return
    else:
        reason = "needs a CUDA device, and a torch that can use it"
    for item in here:
        item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def device(request):
    """Where the tests' tensors are."""
    if AS_CUDA or not request.node.get_closest_marker("gpu"):
        yield DEVICE
        return
    before = torch.are_deterministic_algorithms_enabled()
    yield cuda_device()
    torch.use_deterministic_algorithms(before)
    torch.cuda.synchronize()
    gc.collect()
    torch.cuda.empty_cache()
