"""The runtime's benchmarks for pytest-benchmark: `make bench`."""

import pytest
from figures import measure

from pipert.bench.runtime import PARTS


@pytest.mark.timeout(300)
@pytest.mark.parametrize("part", PARTS)
def test_part(benchmark, part):
    measure(benchmark, PARTS[part])
