"""Messages between ranks on a CUDA device, for pytest-benchmark: `make bench`."""

import pytest
from figures import measure, need_gpu

from pipert.bench.p2p import PARTS


@pytest.mark.timeout(300)
@pytest.mark.parametrize("part", PARTS)
def test_part(benchmark, part):
    need_gpu()
    measure(benchmark, PARTS[part])
