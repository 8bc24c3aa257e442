"""``pipert schedules``: one line each, for people and for programs."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from pipert import ConfigError
from pipert.cli import schedules as command
from pipert.schedules import names

SEARCHED = [option for name in ("zb-1p", "zb-2p", "auto", "optimal") for option in ("--without", name)]

app = typer.Typer()
command.register(app)


def test_every_schedule_stands_on_one_line_of_a_narrow_terminal() -> None:
    result = CliRunner().invoke(app, [], env={"COLUMNS": "80"})
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[1 : 1 + len(names())]] == list(names())
    assert all("arXiv" in line and "section" in line for line in lines[1 : 1 + len(names())])


def test_json_holds_the_same() -> None:
    rows = json.loads(CliRunner().invoke(app, ["--json"]).stdout)
    assert [row["name"] for row in rows] == list(names())
    assert {"chunks", "bubble", "peak", "paper"} < rows[0].keys()


def test_sizes_and_costs_add_their_figures() -> None:
    sizes = ["--ranks", "4", "--microbatches", "8", "--costs", "F=1,B=2", "--costs", "F=2,I=1,W=3"]
    rows = json.loads(CliRunner().invoke(app, [*sizes, *SEARCHED, "--format", "json"]).stdout)
    figures = {row["name"]: [value for key, value in row.items() if " at " in key] for row in rows}
    assert len(figures) == len(names()) - 4
    assert figures["1f1b"] == ["27.27%", "4", "27.27%", "4"]  # (p-1)(F+B) = 9 of 33, and 18 of 66
    assert figures["chimera"] == ["14.29%", "4", "14.29%", "4"]  # (p-2)B = 4 of 28, and 8 of 56
    assert figures["dualpipe"][0] == "7.69%"  # (p/2-1)(F&B+B-3W) = 2 of 26
    table = CliRunner().invoke(app, [*sizes, *SEARCHED, "--format", "markdown"]).stdout.splitlines()
    assert len(table) == 2 + len(rows)
    assert {line.count("|") for line in table} == {10}
    assert table[0].endswith("| bubble at F=2, I=1, W=3 | peak at F=2, I=1, W=3 |")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ranks", "4"], "figures need both --ranks and --microbatches"),
        (["--costs", "F=2"], "figures need both --ranks and --microbatches"),
        (["--without", "zbv"], "no schedule is called 'zbv'; did you mean 'zb-v'?"),
        ([option for name in names() for option in ("--without", name)], "--without leaves no schedule"),
        (["--ranks", "4", "--microbatches", "8", "--costs", "F=x"], "'x' in 'F=x' is not a number"),
    ],
)
def test_bad_options_are_refused_with_a_reason(options: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        CliRunner().invoke(app, options, catch_exceptions=False)
    assert message in str(error.value)
