"""``pipert schedules``: one line each, for people and for programs."""

from __future__ import annotations

import json

import typer
from typer.testing import CliRunner

from pipert.cli import schedules as command
from pipert.schedules import names

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
