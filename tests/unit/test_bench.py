import io
import json

import pytest
from rich.console import Console
from typer.testing import CliRunner

from pipert.bench.figure import Figure, as_json, as_table
from pipert.cli import app, bench
from pipert.errors import ConfigError

bench.register(app)


@pytest.mark.parametrize(
    ("ours", "peer", "bar", "relative", "at_least", "met"),
    [
        (10.0, 100.0, 0.25, True, False, True),
        (30.0, 100.0, 0.25, True, False, False),
        (30.0, None, 0.25, True, False, None),
        (0.02, None, 0.02, False, False, True),
        (2e6, None, 1e6, False, True, True),
        (9e5, None, 1e6, False, True, False),
        (1.0, 2.0, None, False, False, None),
    ],
)
def test_verdict(ours, peer, bar, relative, at_least, met):
    figure = Figure("name", "µs", ours, peer, bar=bar, relative=relative, at_least=at_least)
    assert figure.met is met
    (row,) = json.loads(json.dumps(as_json([figure])))
    assert (row["ours"], row["peer"], row["met"]) == (ours, peer, met)


def test_table_shows_both_sides_and_the_verdict():
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(as_table([Figure("step", "ms", 3.0, 4.0, bar=0.5, relative=True, setting="p = 4")]))
    line = console.export_text().splitlines()[1]
    assert [cell.strip() for cell in line.split("  ") if cell.strip()] == [
        "step", "3 ms", "4 ms", "0.75", "≤ 0.5×", "missed",
    ]  # fmt: skip


@pytest.mark.parametrize("arguments", [["bench", "walk"], ["bench", "-o", "/no/such/folder/figures.json"]])
def test_what_cannot_be_measured_or_written_is_refused_first(arguments):
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, ConfigError)
    assert arguments[-1].removesuffix("/figures.json") in str(result.exception)
