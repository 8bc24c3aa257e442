import csv
import io
import json

import pytest
from typer.testing import CliRunner

import pipert
from pipert import ConfigError, Costs, schedules, sweep
from pipert.cli import app
from pipert.cli import sweep as command

if not any(each.callback is command.sweep for each in app.registered_commands):
    command.register(app)


def run(*arguments):
    result = CliRunner().invoke(app, ["sweep", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_every_combination_has_a_row():
    cases = sweep.cases(["1f1b", "interleaved"], [2, 4], [4, 8], [1, 2], [None, 3.0])
    assert len(cases) == len(set(cases)) == 32
    rows = list(sweep.sweep(cases, Costs.per_rank()))
    assert [(row.schedule, row.ranks, row.microbatches, row.chunks, row.memory_limit) for row in rows] == [
        (case.schedule, case.ranks, case.microbatches, case.chunks, case.memory_limit) for case in cases
    ]
    for row in rows:
        if row.refused:
            assert row.makespan is None
        else:
            program = schedules.build(
                row.schedule, num_ranks=row.ranks, num_microbatches=row.microbatches, num_chunks=row.chunks
            )
            report = pipert.simulate(pipert.compile(program), Costs.per_rank())
            assert (row.makespan, row.bubble_rate, row.bubble_rate_span, row.peak_activation) == (
                report.makespan, report.bubble_rate, report.bubble_rate_span, max(report.peak_activation),
            )  # fmt: skip
            assert 0 < row.lower_bound <= row.makespan * (1 + 1e-9)
    reasons = [row.refused for row in rows if row.refused]
    assert any("1f1b has 1 chunk(s) per rank, not 2" in reason for reason in reasons)
    assert any("the least limit is" in reason for reason in reasons)


def test_a_schedule_decides_what_is_left_open():
    [row] = sweep.sweep(sweep.cases(["zb-v"], [4], [8]), Costs.per_rank())
    assert (row.chunks, row.refused) == (2, "")


def test_a_file_has_its_own_sizes(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("0F0,0B0\n1F0,1B0\n")
    cases = sweep.cases([str(path), "gpipe"], [2, 3], [4, 8], [None], [None])
    assert len(cases) == 5
    row = next(sweep.sweep(cases, Costs.per_rank()))
    assert (row.ranks, row.microbatches, row.makespan, row.refused) == (2, 1, 6, "")


def test_formats(tmp_path):
    arguments = ("--schedules", "1f1b,zb-h1,gpipe", "--ranks", 3, "--microbatches", 6, "--memory-limits", "none,3")
    file = tmp_path / "rows.csv"
    rows = json.loads(run(*arguments, "--json", "--csv", file))
    assert [row["schedule"] for row in rows if not row["refused"]] == ["zb-h1", "zb-h1", "1f1b", "1f1b", "gpipe"]
    assert rows[-1]["refused"].startswith("gpipe holds 6 activations on rank 0")
    from_file = list(csv.DictReader(io.StringIO(file.read_text())))
    assert run(*arguments, "--format", "csv") == file.read_text()
    assert [row["makespan"] for row in from_file] == [str(row["makespan"] or "") for row in rows]
    markdown = run(*arguments, "--format", "markdown").splitlines()
    assert len(markdown) == 2 + len(rows)
    assert {line.count("|") for line in markdown} == {len(sweep.HEADS) + 1}
    table = run(*arguments)
    assert "refused (1):\n  gpipe p=3 m=6 limit=3: gpipe holds 6" in table
    assert table.split()[0] == "schedule"


def test_sorted_by_what_was_asked():
    rows = json.loads(
        run("--schedules", "gpipe,1f1b,zb-h2", "--ranks", 4, "--microbatches", 8, "--sort", "peak", "--json")
    )
    assert [row["schedule"] for row in rows] == ["1f1b", "zb-h2", "gpipe"]


def test_all_schedules_by_default():
    rows = json.loads(run("--ranks", 2, "--microbatches", 4, "--json"))
    assert {row["schedule"] for row in rows} == set(schedules.names())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ranks", "2,x"], "--ranks: '2,x' is not a list of numbers like 8,16"),
        (["--ranks", ","], "--ranks is empty"),
        (["--costs", "F=-1"], "F must be finite and not negative"),
        (["--ranks", "2", "--microbatches", "2", "--csv", "/none/x.csv"], "cannot write /none/x.csv"),
    ],
)
def test_what_is_wrong_is_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        run("--schedules", "1f1b", *arguments)


def test_unknown_schedules_and_missing_sizes_are_refused_row_by_row():
    rows = json.loads(run("--schedules", "2f2b,1f1b", "--json"))
    assert "'2f2b' is neither a file nor a schedule" in rows[0]["refused"]
    assert "needs --ranks and --microbatches" in rows[1]["refused"]
