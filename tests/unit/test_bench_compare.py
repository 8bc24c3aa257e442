"""Verdicts over an older result, and the machine that stands in every result."""

import json

import pytest
from typer.testing import CliRunner

from pipert.bench import compare, gpu, machine, planner
from pipert.bench.compare import Verdict
from pipert.bench.figure import Figure, Unavailable
from pipert.cli import app, bench
from pipert.errors import ConfigError, CudaError

bench.register(app)


def result(area="planner", **changes):
    figure = {"name": "copy", "ours": 100.0, "quartiles": [99.0, 101.0], **changes}
    return {"area": area, "machine": {"torch": "2.0", "cores": 2, "gpu": None}, "figures": [figure]}


def old(tmp_path, **changes):
    path = tmp_path / "old.json"
    path.write_text(json.dumps(result(**changes)))
    return compare.load(path, "planner")


@pytest.mark.parametrize(
    ("now", "unit", "verdict"),
    [
        ((89, 90, 91), "µs", Verdict.FASTER),
        ((109, 110, 111), "µs", Verdict.SLOWER),
        ((89, 90, 91), "GB/s", Verdict.SLOWER),
        ((109, 110, 111), "GB/s", Verdict.FASTER),
        ((99.5, 100.5, 101.5), "µs", Verdict.SAME),  # the ranges meet, and both are narrow
        ((60, 90, 120), "µs", Verdict.AMBIGUOUS),  # they meet because one is wide
        ((100.9, 101.0, 110), "µs", Verdict.AMBIGUOUS),  # it may have become a tenth slower
        ((100.0, 100.0, 100.0), "µs", Verdict.SAME),
    ],
)
def test_a_verdict_needs_ranges_apart(tmp_path, now, unit, verdict):
    first, median, third = now
    figure = Figure("copy", unit, median, quartiles=(first, third))
    assert compare.verdict(figure, old(tmp_path)) is verdict


def test_a_difference_that_is_none_is_the_same(tmp_path):
    before = old(tmp_path, quartiles=[100.0, 100.0])
    assert compare.verdict(Figure("copy", "µs", 100.5, quartiles=(100.5, 100.5)), before) is Verdict.SAME


def test_without_a_spread_only_equal_values_are_the_same(tmp_path):
    before = old(tmp_path, quartiles=None)
    assert compare.verdict(Figure("copy", "µs", 100.0), before) is Verdict.SAME
    assert compare.verdict(Figure("copy", "µs", 50.0, quartiles=(50.0, 50.0)), before) is Verdict.AMBIGUOUS


def test_figures_come_and_go(tmp_path):
    before = old(tmp_path)
    figures = [Figure("p2p", "µs", 1.0)]
    assert compare.verdicts(figures, before) == {"p2p": (None, "new")}
    assert compare.missing(figures, before) == ["copy"]


def test_quartiles_of_rounds():
    figure = Figure.of("copy", "µs", [4.0, 1.0, 3.0, 2.0, 5.0], [2.0, 4.0, 9.0])
    assert (figure.ours, figure.peer, figure.quartiles) == (3.0, 4.0, (2.0, 4.0))
    assert Figure.of("copy", "µs", [4.0]).quartiles == (4.0, 4.0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        ("nonsense", "is no result of `pipert bench planner"),
        ("[]", "is no result of `pipert bench planner"),
        (json.dumps({"area": "planner", "machine": {}, "figures": [{"name": "x"}]}), "is no result"),
        (json.dumps(result(area="copy")), "holds figures of the area 'copy', not of 'planner'"),
    ],
)
def test_what_is_no_older_result_is_refused_before_anything_is_measured(tmp_path, content, message, monkeypatch):
    monkeypatch.setattr(planner, "PARTS", {"never": lambda: pytest.fail("measured")})
    path = tmp_path / "old.json"
    if content is not None:
        path.write_text(content)
    found = CliRunner().invoke(app, ["bench", "planner", "--compare", str(path)])
    assert isinstance(found.exception, ConfigError)
    assert message in str(found.exception)


def test_another_gpu_or_torch_is_warned_of(tmp_path):
    before = old(tmp_path)
    here = {"torch": "2.1", "cores": 2, "gpu": {"name": "NVIDIA H200", "driver": "580"}}
    assert compare.warnings(here, before) == [
        f"{before.path}: another GPU: none then, NVIDIA H200 now",
        f"{before.path}: another driver: none then, 580 now",
        f"{before.path}: another torch: 2.0 then, 2.1 now",
    ]
    assert compare.warnings(before.machine, before) == []


def test_the_command_stores_by_machine_compares_and_tells_what_is_missing(tmp_path, monkeypatch):
    def nothing_here():
        raise Unavailable("no such tool")

    value = [10.0, 10.0, 10.0]
    monkeypatch.setattr(machine.shutil, "which", lambda _: None)
    monkeypatch.setattr(planner, "PARTS", {"one": lambda: [Figure.of("plan", "s", list(value))], "other": nothing_here})
    run = CliRunner().invoke(app, ["bench", "planner", "-o", str(tmp_path)])
    assert run.exit_code == 0, run.exception
    assert "not measured: other: no such tool" in run.stdout
    (path,) = tmp_path.iterdir()
    stored = json.loads(path.read_text())
    assert path.name == f"planner_{stored['machine']['cores']}_cores.json"
    assert stored["unavailable"] == {"other": "no such tool"}
    assert stored["machine"]["gpu"] is None
    assert stored["failed"] == {}
    value[:] = [20.0, 20.0, 20.0]
    run = CliRunner().invoke(app, ["bench", "planner", "--compare", str(tmp_path), "--json"])
    compared = json.loads(run.stdout)
    assert compared["compared_with"] == str(path)
    assert (compared["figures"][0]["was"], compared["figures"][0]["verdict"]) == (10.0, "slower")
    run = CliRunner().invoke(app, ["bench", "planner", "--compare", str(path)])
    assert "slower" in run.stdout


def test_a_part_that_fails_is_told_after_the_others(tmp_path, monkeypatch):
    def failing():
        raise RuntimeError("the device is lost")

    monkeypatch.setattr(planner, "PARTS", {"one": failing, "other": lambda: [Figure("plan", "s", 1.0)]})
    run = CliRunner().invoke(app, ["bench", "planner", "-o", str(tmp_path / "new.json")])
    assert run.exit_code == 1
    assert "failed: one: RuntimeError: the device is lost" in run.stdout
    stored = json.loads((tmp_path / "new.json").read_text())
    assert [figure["name"] for figure in stored["figures"]] == ["plan"]
    assert stored["failed"] == {"one": "RuntimeError: the device is lost"}


SMI = """#!/bin/sh
case "$2" in
  --query-gpu=name,*) echo "NVIDIA H200, 580.65.06, 1980, 3201" ;;
  *) echo "345, 2619, [N/A], 31" ;;
esac
"""


def test_the_gpu_stands_in_the_machine(tmp_path, monkeypatch):
    smi = tmp_path / "nvidia-smi"
    smi.write_text(SMI)
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = machine.describe()
    assert found["gpu"]["name"] == "NVIDIA H200"
    assert found["gpu"]["driver"] == "580.65.06"
    assert found["gpu"]["max_sm_mhz"] == 1980.0
    assert {"driver_cuda", "torch_cuda"} <= set(found["gpu"])
    assert machine.gpu_state() == {"sm_mhz": 345.0, "memory_mhz": 2619.0, "power_w": None, "temperature_c": 31.0}
    assert machine.label(found, on_gpu=True) == "h200"
    assert machine.label(found, on_gpu=False) == f"{found['cores']}_cores"
    states = machine.with_states(found, {"sm_mhz": 1980.0})["gpu"]
    assert (states["before"], states["after"]) == ({"sm_mhz": 1980.0}, machine.gpu_state())
    smi.write_text("#!/bin/sh\nexit 9\n")
    assert machine.gpu_state() is None
    assert machine.describe()["gpu"] is None


@pytest.mark.parametrize("area", ["launch", "copy", "p2p"])
def test_without_a_device_the_command_says_why(area, monkeypatch):
    def no_device():
        raise CudaError("no CUDA driver: libcuda.so.1 cannot be opened")

    monkeypatch.setattr(gpu, "device", no_device)
    found = CliRunner().invoke(app, ["bench", area])
    assert isinstance(found.exception, CudaError)
