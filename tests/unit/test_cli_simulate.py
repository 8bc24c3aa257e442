import json
import re
from array import array

import pytest
from typer.testing import CliRunner

import pipert
from pipert import ConfigError, Costs, PlanError, schedules
from pipert.cli import app, simulate, view
from pipert.trace import Trace, write_chrome

if not any(command.callback is simulate.simulate for command in app.registered_commands):
    simulate.register(app)
    view.register(app)


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def plan_file(tmp_path):
    plan = pipert.compile(schedules.build("zb-v", num_ranks=2, num_microbatches=4))
    path = tmp_path / "plan.json"
    plan.save(path)
    return path


def test_simulate_by_name():
    output = run("simulate", "1f1b", "--ranks", 4, "--microbatches", 8, "--costs", "F=1,I=1,W=1", "--json")
    figures = json.loads(output)
    assert figures["makespan"] == 33
    assert figures["bubble_rate"] == pytest.approx(3 / 11)
    assert "peak activation" in run("simulate", "interleaved", "--ranks", 2, "--microbatches", 4, "--chunks", 3)


def test_simulate_files(tmp_path, plan_file):
    by_name = run("simulate", "zb-v", "--ranks", 2, "--microbatches", 4, "--host-cores", 1)
    assert run("simulate", plan_file, "--host-cores", 1) == by_name
    csv = tmp_path / "schedule.csv"
    csv.write_text("0F0,0B0\n1F0,1B0\n")
    assert json.loads(run("simulate", csv, "--json"))["makespan"] == 6


def test_simulate_with_costs_per_stage(tmp_path):
    costs = tmp_path / "costs.toml"
    costs.write_text("[[stage]]\nF = 1\nB = 2\n[[stage]]\nF = 5\nB = 2\n")
    sizes = ("--ranks", 2, "--microbatches", 1)
    assert json.loads(run("simulate", "gpipe", *sizes, "--costs-file", costs, "--json"))["makespan"] == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["1f1b"], "'1f1b' needs --ranks and --microbatches"),
        (["2f2b"], "'2f2b' is neither a file nor a schedule"),
        (["2f2b", "--ranks", 2, "--microbatches", 2], "2f2b"),
        (["plan.json", "--ranks", 2], "--ranks goes with a schedule's name"),
        (["none.csv"], "cannot read 'none.csv'"),
        (["1f1b", "--ranks", 2, "--microbatches", 2, "--costs", "F=1", "--costs-file", "x"], "not both"),
        (["1f1b", "--costs", "F=1", "--costs-from", "x"], "give --costs or --costs-from, not both"),
        (["1f1b", "--costs-from", "none.json"], "cannot read trace file 'none.json'"),
        (["1f1b", "--ranks", 2, "--microbatches", 2, "--host-cores", 0], "host_cores must be positive"),
    ],
)
def test_simulate_names_what_is_wrong(arguments, message):
    with pytest.raises(ConfigError, match=message):
        run("simulate", *arguments)


def test_simulate_explains_and_varies():
    sizes = ("--ranks", 3, "--microbatches", 6, "--costs", "F=1,I=1,W=1,p2p=0.5")
    output = run("simulate", "1f1b", *sizes, "--explain", "--noise", "cv=0.1", "--samples", 20)
    assert all(part in output for part in ("warm-up", "critical path", "20 noisy steps"))
    figures = json.loads(run("simulate", "1f1b", *sizes, "--explain", "--noise", "cv=0.1", "--samples", 20, "--json"))
    idle = figures["explanation"]["idle"]
    assert [each["total"] for each in idle] == pytest.approx(
        [figures["makespan"] - c for c in figures["compute_times"]]
    )
    again = json.loads(run("simulate", "1f1b", *sizes, "--noise", "cv=0.1", "--samples", 20, "--json"))
    assert again["noise"] == figures["noise"]
    assert "explanation" not in again


@pytest.fixture
def trace_file(tmp_path):
    """A measured step beside its prediction, as a run leaves them behind."""
    plan = pipert.compile(schedules.build("1f1b", num_ranks=2, num_microbatches=4))
    predicted = pipert.simulate(plan, Costs.per_rank(F=1, B=2, p2p=0.25)).trace
    start, end = (array("d", [1e6 * time for time in column]) for column in (predicted.start, predicted.end))
    measured = Trace(plan, start, end, ready=array("d", [0.0]) * plan.num_ops, unit="ns")
    path = tmp_path / "trace.json"
    write_chrome(path, [("predicted", predicted), ("measured", measured)])
    return path


def test_simulate_a_trace(trace_file):
    figures = json.loads(run("simulate", trace_file, "--explain", "--json"))
    assert figures["unit"] == "ns"
    assert figures["makespan"] == pytest.approx(16e6)
    assert figures["explanation"]["idle"][0]["total"] == pytest.approx(4e6)
    assert "makespan 16 ms" in run("simulate", trace_file)
    half = json.loads(run("simulate", trace_file, "--costs", "act=0.5", "--json"))
    assert half["peak_activation"] == [1.0, 0.5]


def test_costs_from_a_trace(trace_file):
    same = json.loads(run("simulate", "1f1b", "--ranks", 2, "--microbatches", 4, "--costs-from", trace_file, "--json"))
    assert same["makespan"] == pytest.approx(16)
    # Twice as many stages: each half as long.
    more = json.loads(run("simulate", "zb-v", "--ranks", 2, "--microbatches", 4, "--costs-from", trace_file, "--json"))
    assert more["compute_times"] == pytest.approx([12, 12])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ranks", 2], "--ranks is for what is simulated; .*trace.json' holds a step as it was"),
        (["--noise", "cv=1"], "--noise is for what is simulated"),
    ],
)
def test_a_trace_takes_no_sizes(trace_file, arguments, message):
    with pytest.raises(ConfigError, match=message):
        run("simulate", trace_file, *arguments)


def test_view_of_a_plan_and_its_trace(tmp_path, plan_file):
    plan = pipert.Plan.load(plan_file)
    trace_file = tmp_path / "trace.json"
    write_chrome(trace_file, [("measured", pipert.simulate(plan, Costs.per_rank(F=2)).trace)])
    page = tmp_path / "timeline.html"
    assert str(page) in run("view", plan_file, trace_file, "-o", page)
    html = page.read_text()
    assert '"label":"planned"' in html
    assert '"label":"measured"' in html
    assert len(set(re.findall(r'"makespan":([0-9.]+)', html))) == 1  # the plan costs what the trace says


def test_view_of_two_plans_is_labelled_by_file(tmp_path, plan_file):
    other = tmp_path / "other.json"
    pipert.compile(schedules.build("1f1b", num_ranks=2, num_microbatches=4)).save(other)
    page = tmp_path / "timeline.html"
    run("view", plan_file, other, "-o", page, "--costs", "F=2,I=2,W=2")
    assert '"label":"plan"' in page.read_text()
    assert '"label":"other"' in page.read_text()


def test_view_names_what_is_wrong(tmp_path, plan_file):
    with pytest.raises(ConfigError, match="at most two"):
        run("view", plan_file, plan_file, plan_file, "-o", tmp_path / "x.html")
    with pytest.raises(ConfigError, match="cannot read"):
        run("view", tmp_path / "none.json", "-o", tmp_path / "x.html")
    plan_file.write_text("{}")
    with pytest.raises(PlanError):
        run("view", plan_file, "-o", tmp_path / "x.html")
