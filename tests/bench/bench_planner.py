"""Planning at scale for pytest-benchmark: `make bench`. Figures and bars stand in ``extra_info``."""

import pytest
from rich.console import Console

from pipert.bench.figure import as_json, as_table
from pipert.bench.planner import PARTS


@pytest.mark.timeout(300)
@pytest.mark.parametrize("part", PARTS)
def test_part(benchmark, part):
    figures = benchmark.pedantic(PARTS[part], rounds=1)
    benchmark.extra_info["figures"] = as_json(figures)
    print()
    Console(highlight=False, width=160).print(as_table(figures))
