"""The build and the driver on a machine with a GPU."""

import pytest
import torch

from pipert import _core

pytestmark = [pytest.mark.gpu, pytest.mark.kernels]


def test_there_are_kernels_for_this_device():
    major, minor = torch.cuda.get_device_capability()
    assert f"{major}{minor}" in _core.cuda_kernel_architectures()


def test_the_driver_is_what_torch_finds():
    assert _core.cuda_device_count() == torch.cuda.device_count() > 0
    assert _core.cuda_driver_version() >= 12000


def test_spin_takes_as_long_as_it_is_told():
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    stream = torch.cuda.current_stream()
    _core.cuda_spin(stream.cuda_stream, 1000)
    begin.record()
    _core.cuda_spin(stream.cuda_stream, 5_000_000)
    end.record()
    end.synchronize()
    assert 5.0 <= begin.elapsed_time(end) < 7.0
