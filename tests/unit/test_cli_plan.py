"""``pipert plan``: a grid, PyTorch's CSV, or a verified plan file."""

from __future__ import annotations

import json
import pathlib

import pytest
import typer
from typer.testing import CliRunner, Result

from pipert import ConfigError, compile, schedules
from pipert.cli import plan as command
from pipert.ir.csv import from_csv
from pipert.plan import Plan

app = typer.Typer()
command.register(app)
SIZES = ("--ranks", "2", "--microbatches", "3")
PROGRAM = schedules.build("zb-h1", num_ranks=2, num_microbatches=3)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_the_grid_is_the_default() -> None:
    result = invoke("zb-h1", *SIZES)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"{PROGRAM}\n")


def test_a_grid_that_is_not_for_a_terminal_is_whole() -> None:
    result = invoke("zb-v", "--ranks", 4, "--microbatches", 16)
    assert max(map(len, result.stdout.splitlines())) > 300


def test_under_the_grid_stands_what_the_costs_predict(tmp_path: pathlib.Path) -> None:
    last = invoke("zb-h1", *SIZES).stdout.splitlines()[-1]
    assert last == "predicted: makespan 10, bubble 10.0% (over the longest rank's span 10.0%), peak activation 2"
    last = invoke("zb-h1", *SIZES, "--costs", "F=10,I=10,W=4,act=3").stdout.splitlines()[-1]
    assert last.startswith("predicted: makespan 88, bubble 18.2%")
    assert last.endswith("peak activation 6")
    file = tmp_path / "costs.toml"
    file.write_text("F = 10\nI = 10\nW = 4\nact = 3\n")
    assert invoke("zb-h1", *SIZES, "--costs-file", file).stdout.splitlines()[-1] == last


def test_csv_and_json_on_the_terminal() -> None:
    assert from_csv(invoke("zb-h1", *SIZES, "--format", "csv").stdout, name="zb-h1") == PROGRAM
    assert json.loads(invoke("zb-h1", *SIZES, "--format", "json").stdout)["plan"]["name"] == "zb-h1"


def test_the_name_of_the_output_chooses_the_format(tmp_path: pathlib.Path) -> None:
    for name in ("plan.json", "plan.csv", "plan.txt", "named.csv"):
        chosen = ("--format", "json") if name == "named.csv" else ()
        result = invoke("zb-h1", *SIZES, "-o", tmp_path / name, *chosen)
        assert (result.exit_code, result.stdout) == (0, "")
    assert Plan.load(tmp_path / "plan.json") == Plan.load(tmp_path / "named.csv") == compile(PROGRAM)
    assert from_csv((tmp_path / "plan.csv").read_bytes().decode(), name="zb-h1") == PROGRAM
    assert (tmp_path / "plan.txt").read_text().startswith(str(PROGRAM))


def test_a_picture(tmp_path: pathlib.Path) -> None:
    text = invoke("zb-h1", *SIZES, "--format", "svg", "--costs", "F=10,I=10,W=4,act=3").stdout
    assert "bubble 18.2% · peak activation 6 on rank 0" in text
    invoke("zb-h1", *SIZES, "--costs", "F=10,I=10,W=4,act=3", "-o", tmp_path / "picture.svg")
    assert (tmp_path / "picture.svg").read_text() == text


def test_chunks_are_passed_on() -> None:
    assert "2 ranks, 6 stages" in invoke("interleaved", *SIZES, "--chunks", 3).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("zbh1", *SIZES), "did you mean 'zb-h1'"),
        (("zb-h1", "--ranks", 0, "--microbatches", 3), "ranks, not 0"),
        (("zb-h1", *SIZES, "--costs", "F=1,V=2"), "unknown cost 'V'"),
        (("zb-h1", *SIZES, "-o", "/nowhere/plan.csv"), "cannot write /nowhere/plan.csv: No such file"),
        (("zb-h1", *SIZES, "-o", "/nowhere/plan.json"), "/nowhere/plan.json: No such file"),
    ],
)
def test_mistakes_are_told(arguments: tuple[object, ...], message: str) -> None:
    result = invoke(*arguments)
    assert isinstance(result.exception, ConfigError)
    assert message in str(result.exception)


def test_the_optimal_schedule_is_shown_with_its_proof() -> None:
    pytest.importorskip("ortools")
    sizes = ("--ranks", 4, "--microbatches", 6, "--chunks", 1, "--memory-limit", 3)
    result = invoke("optimal", *sizes, "--time-limit", 20)
    assert result.exit_code == 0, result.output
    last = result.stdout.splitlines()[-1]
    assert last == "proven: no schedule of this placement has its longest rank span below 22; gap 0.00%"


def test_a_limit_that_no_schedule_keeps_is_refused_with_the_least() -> None:
    pytest.importorskip("ortools")
    result = invoke("optimal", "--ranks", 4, "--microbatches", 6, "--chunks", 1, "--memory-limit", 0.5)
    assert isinstance(result.exception, ConfigError)
    assert "the least limit is 1" in str(result.exception)
