"""The README's example and its drawing are what they say."""

import pathlib
import re
import shlex

import pytest
import typer
from typer.testing import CliRunner

import pipert
from pipert.cli import schedules
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


def test_the_table_of_schedules_is_what_the_command_prints():
    [(arguments, table)] = re.findall(r"```\npipert schedules (--ranks [^`]*)```\n\n((?:\|.*\n)+)", README)
    app = typer.Typer()
    schedules.register(app)
    printed = CliRunner().invoke(app, shlex.split(arguments.replace("\\\n", " "))).stdout
    assert printed == table, "the README's table of schedules is out of date: put in what its command prints"


@pytest.mark.parametrize("path", re.findall(r"\]\(([^)h][^)]*)\)", README))
def test_links_lead_somewhere(path):
    assert (pathlib.Path(__file__).parents[2] / path).exists()
