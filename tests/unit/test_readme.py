"""The README's example and its drawing are what they say."""

import pathlib
import re

import pytest

import pipert
from pipert.ir import grid

README = (pathlib.Path(__file__).parents[2] / "README.md").read_text()


def test_the_example_runs(capsys):
    [example] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out.count("bubble") == 2


def test_the_grid_is_what_plan_draws():
    program = pipert.schedules.build("zb-h1", num_ranks=4, num_microbatches=8)
    for row in grid.grid(program).splitlines()[1:]:
        assert row in README


@pytest.mark.parametrize("path", re.findall(r"\]\(([^)h][^)]*)\)", README))
def test_links_lead_somewhere(path):
    assert (pathlib.Path(__file__).parents[2] / path).exists()
