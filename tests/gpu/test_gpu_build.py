"""The CUDA build on a machine with a GPU; `make gpu` runs this."""

import pytest
import torch

from pipert import _core

pytestmark = pytest.mark.gpu


def test_build_has_cuda():
    assert _core.built_with_cuda()


def test_device_count_is_torchs():
    assert torch.cuda.device_count() > 0
    assert _core.cuda_device_count() == torch.cuda.device_count()
