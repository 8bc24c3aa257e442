import pytest

from pipert import _core


def pytest_collection_modifyitems(config, items):
    """Plain `pytest` skips these tests in a host-only build; under `-m gpu` a missing GPU is a failure."""
    if "gpu" in config.option.markexpr or (_core.built_with_cuda() and _core.cuda_device_count()):
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA build and a CUDA device"))
