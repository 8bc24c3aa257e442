"""The parts of `make gpu` that need no GPU: its rows, its time, its pictures, and the filing of its results."""

import json
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from unittest.mock import MagicMock

import gpu_check
import pytest
from gpucheck import benching, building, machine, plots, record, sanitizing, testing, training
from gpucheck.place import Done, Place
from gpucheck.rows import Row, table

GPU = {"name": "NVIDIA H200", "driver_version": "580.1", "clocks.sm": "1980 MHz"}


@pytest.fixture
def place(tmp_path):
    with (tmp_path / "log").open("w") as log:
        yield Place(tmp_path, tmp_path, time.monotonic() + 60, log)


def done(text, status=0, timed_out=False):
    return Done(status, text, 2.0, timed_out)


def figure(name, unit, ours, peer=None, met=None):
    return {"name": name, "unit": unit, "ours": ours, "peer": peer, "met": met}


def test_the_table_ends_with_the_verdict():
    text = table([Row("build", True, "", 12.0), Row("tests", False, "2 failed")])
    assert text.splitlines() == [
        "ok    build    12.0 s",
        "FAIL  tests     0.0 s  2 failed",
        "1 ok, 1 failed",
    ]


def test_a_command_is_logged_and_timed(place):
    found = place.python("-c", "import os; print('here', os.getcwd()); os._exit(3)")
    assert (found.status, found.timed_out) == (3, False)
    assert str(place.work) in found.text
    assert found.why == f"exit status 3: here {place.work}"
    assert "here" in (place.out / "log").read_text()


def test_a_command_whose_time_is_up_may_say_how_far_it_came(place, monkeypatch):
    monkeypatch.setattr("gpucheck.place.GRACE_S", 3.0)
    place.deadline = time.monotonic() + 5
    code = "import time\ntry:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    print('halfway')"
    found = place.python("-c", code)
    assert found.timed_out
    assert found.why.startswith("did not end within")
    assert found.why.endswith("halfway")


def test_a_command_that_does_not_listen_is_killed_with_what_it_started(place, monkeypatch):
    monkeypatch.setattr("gpucheck.place.GRACE_S", 0.5)
    place.deadline = time.monotonic() + 1.5
    code = "import signal, subprocess, time; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    found = place.python("-c", code + "subprocess.Popen(['sleep', '60']); print('started', flush=True); time.sleep(60)")
    assert found.timed_out
    assert found.seconds < 10
    assert found.status == 128 + 9


def test_steps_go_on_after_one_that_breaks_and_share_the_time(place, monkeypatch):
    left = {}

    def breaks(place):
        raise OSError("no space")

    def works(place):
        left["works"] = place.deadline - time.monotonic()
        return [Row("works", True)]

    steps = {"breaks": gpu_check.Step(breaks, 10, 1), "works": gpu_check.Step(works, 100, 5)}
    steps["last"] = gpu_check.Step(lambda place: [Row("last", True)], 10, 12)
    monkeypatch.setattr(gpu_check, "STEPS", steps)
    rows = gpu_check.run_steps(("breaks", "works", "last"), place, time.monotonic() + 30)
    assert [(row.name, row.passed) for row in rows] == [("breaks", False), ("works", True), ("last", True)]
    assert rows[0].detail == "OSError: no space"
    assert left["works"] == pytest.approx(18, abs=1)  # the 12 seconds of the last step are kept


def test_every_part_fits_into_nine_minutes():
    for names in gpu_check.PARTS.values():
        assert sum(gpu_check.STEPS[name].least_s for name in names) < gpu_check.LIMIT_S < 530


def test_the_kernels_can_be_imported_from_a_tree_that_is_not_installed(tmp_path):
    for folder in ("pipert", "kernels"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text("")
    (tmp_path / "kernels" / "found.py").write_text("print('here')")
    for _ in range(2):  # a second check finds the link
        building.link_kernels(tmp_path)
    # without site-packages, where this tree is installed
    command = [sys.executable, "-S", "-c", "import pipert.kernels.found"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, env={})
    assert done.stdout == "here\n"


REPORT = """
<testsuites><testsuite>
<testcase classname="tests.gpu.test_bits" name="test_a[1f1b]" time="1.5"/>
<testcase classname="tests.gpu.test_bits" name="test_a[zb-v]" time="0.5">
<failure message="differs&#10;by much"/></testcase>
<testcase classname="tests.gpu.test_bits" name="test_a[gpipe]" time="0.5"><failure message="differs"/></testcase>
<testcase classname="tests.gpu.test_bits" name="test_b" time="0"><skipped message="replicas"/></testcase>
<testcase classname="tests.gpu.test_trace" name="test_c" time="0"><skipped message="no kernels"/></testcase>
<testcase classname="tests.gpu.test_build" name="test_d" time="0.25"/>
</testsuite></testsuites>
"""


def test_every_test_of_a_group_is_there():
    groups = (*testing.BESIDE_EACH_OTHER, testing.TIMES)
    assert all((testing.TESTS / name).exists() for group in groups for name in group)


def test_rows_of_a_test_run():
    cases = list(ElementTree.fromstring(REPORT).iter("testcase"))
    rows = testing.rows_of(cases, done("", status=1))
    assert rows == [
        Row("test_bits", False, "2 failed, 1 passed, 1 skipped (replicas)", 2.5),
        Row("test_trace", False, "1 skipped (no kernels)", 0.0),  # nothing of it has run
        Row("test_build", True, "1 passed", 0.25),
        Row("  test_bits::test_a[zb-v]", False, "differs (and 1 more)", 0.5),
    ]
    assert testing.rows_of(cases, done("killed", status=137, timed_out=True))[-1].name == "pytest"
    (row,) = testing.rows_of([], done("no module named pytest", status=1))
    assert (row.passed, row.detail) == (False, "exit status 1: no module named pytest")


@pytest.mark.parametrize(
    ("tool", "found", "passed", "count"),
    [
        ("memcheck", done("ran to its end\n========= ERROR SUMMARY: 0 errors"), True, 0),
        ("memcheck", done("ran to its end\n========= ERROR SUMMARY: 3 errors", status=1), False, 3),
        ("memcheck", done("Traceback\n========= ERROR SUMMARY: 0 errors", status=1), False, 0),
        ("racecheck", done("ran to its end\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors)"), True, 0),
        ("racecheck", done("this device is not supported", status=1), False, None),
        ("racecheck", done("ran to its end", timed_out=True), False, None),
    ],
)
def test_verdict_of_the_sanitizer(tool, found, passed, count):
    verdict, detail, errors = sanitizing.judge(tool, found)
    assert (verdict, errors) == (passed, count)
    assert detail


def test_what_the_sanitizer_watches_is_there():
    targets = {target for _, target, _ in sanitizing.RUNS}
    assert all(Path(sanitizing.__file__).with_name(target).exists() for target in targets)
    assert all("ran to its end" in Path(sanitizing.__file__).with_name(target).read_text() for target in targets)


def test_rows_of_a_benchmark():
    figures = [figure("a", "µs", 1.0, met=True), figure("b", "µs", 2.0, met=False), figure("c", "µs", 3.0)]
    result = {"figures": figures, "unavailable": {"ipc_two_processes_mps": "no daemon", "step_graph": "no torch"}}
    result["failed"] = {"nccl": "TransportError: it hangs"}
    assert benching.rows_of("p2p", result, 9.0) == [
        Row("bench p2p", True, "3 figures, 1 of 2 bars met; missed: b", 9.0),
        Row("  p2p: ipc two processes mps", True, "not measured: no daemon"),
        Row("  p2p: step graph", False, "not measured: no torch"),
        Row("  p2p: nccl", False, "TransportError: it hangs"),
    ]
    assert not benching.rows_of("p2p", {"figures": []}, 0.0)[0].passed


def test_an_area_that_is_not_there_is_a_failed_row(place, monkeypatch):
    monkeypatch.setattr(benching, "AREAS", ("flight",))
    (row,) = benching.bench(place)
    assert not row.passed
    assert row.detail.startswith("no such area; there is: runtime")


def test_areas_are_measured_in_their_parts_and_kept_together(place, monkeypatch):
    commands = []

    def python(*arguments, env=None, **options):
        if "-c" in arguments:
            return done("copy vocab")
        commands.append((arguments, env))
        area, file = arguments[3], arguments[-1]
        if area == "vocab":  # it was interrupted
            file.write_text(
                json.dumps({"figures": [figure(area, "ms", 1.0)], "failed": {"beside_quack": "interrupted"}})
            )
            return done("", status=1)
        file.write_text(json.dumps({"figures": [figure(area, "ms", 1.0)]}))
        return done("")

    monkeypatch.setattr(benching, "AREAS", ("copy", "vocab"))
    monkeypatch.setattr(Place, "python", lambda place, *arguments, **options: python(*arguments, **options))
    rows = benching.bench(place)
    assert [(row.name, row.passed) for row in rows] == [
        ("bench copy", True), ("bench vocab", True), ("  vocab: beside quack", False),
    ]  # fmt: skip
    (copy, _), (vocab, environment) = commands
    assert copy[:5] == ("-m", "pipert", "bench", "copy", "-o")
    assert vocab[4:6] == ("--part=v_128k", "--part=beside_torch")
    assert environment["PIPERT_PEERS"].endswith("profiles/peers")
    assert {area: len(result["figures"]) for area, result in benching.measured(place.out).items()} == {
        "copy": 1, "vocab": 1,
    }  # fmt: skip


SUMMARY = {
    "step_time_ms": 500.0, "predicted_step_time_ms": 490.0, "tokens_per_second": 65_536.0, "first_loss": 5.6,
    "last_loss": 4.0, "losses": [5.6, 5.0, 4.0], "bitwise_equal": True,
}  # fmt: skip


def test_verdict_of_the_training():
    passed, detail = training.judge_large(done(""), SUMMARY)
    assert passed
    assert detail.startswith("1.01 B parameters in 4 stages: step 500 ms (predicted 490), 65,536 tokens/s, 396 TFLOP/s")
    assert not training.judge_large(done(""), SUMMARY | {"last_loss": 6.0})[0]
    assert training.judge_large(done("out of memory", status=1), None) == (False, "exit status 1: out of memory")
    assert training.judge_two_ranks(done(""), SUMMARY)[0]
    assert not training.judge_two_ranks(done(""), SUMMARY | {"bitwise_equal": None})[0]


def test_the_trained_model_has_the_size_that_is_told():
    from pipert.train.config import ModelConfig
    from pipert.train.model import GptStage

    config = ModelConfig(num_layers=2, dim=64, num_heads=2)
    matrices = sum(p.numel() for p in GptStage(config, range(2)).parameters() if p.dim() > 1)
    assert matrices == 12 * 2 * 64**2 + 256 * 64
    assert training.NUM_PARAMETERS == 12 * training.LAYERS * training.DIM**2 + 256 * training.DIM > 1e9


@pytest.mark.parametrize("options", [training.LARGE, training.TWO_RANKS])
def test_the_trainings_options_make_a_plan(options, tmp_path):
    import typer
    from typer.main import get_command

    from pipert.cli import train

    app = typer.Typer()
    train.register(app)
    context = get_command(app).make_context("train", ["--device=cuda", *options])
    assert context.params["device"] == "cuda"
    assert (context.params["ranks"], context.params["dtype"]) == (2, "bf16")


@pytest.fixture
def results(tmp_path):
    """A folder as a check leaves it."""
    folder = tmp_path / "out"
    folder.mkdir()
    report = {
        "commit": "0123456789ab",
        "sources": machine.sources_digest(),
        "machine": {"gpu": GPU},
        "training": {"large": {"summary": SUMMARY}},
        "rows": [],
    }
    (folder / "gpu.json").write_text(json.dumps(report))
    copies = [figure("D2H, 64 KiB", "GB/s", 10.0, 9.0), figure("D2H, 1 MiB", "GB/s", 50.0, 51.0)]
    copies.append(figure("D2H, best chunk", "GB/s", 50.0, 51.0, met=True))
    layers = [figure("S+T, V=128k, p=1", "TFLOP/s", 705.0, 760.0), figure("extra memory, V=128k, p=1", "MiB", 2100.0)]
    layers += [
        figure(f"{what} beside {peer}, {case}, p=1", unit, ours, theirs)
        for case in ("V=128k", "Llama-2-7B")
        for peer in ("torch", "liger-kernel")
        for what, unit, ours, theirs in (("S+T", "TFLOP/s", 700.0, 200.0), ("error of dX", "", 2e-3, 0.5))
    ]
    areas = {
        area: {"machine": {"commit": None}, "figures": of_area}
        for area, of_area in (("copy", copies), ("vocab", layers))
    }
    (folder / benching.NAME).write_text(json.dumps(areas))
    (folder / plots.NAME).write_bytes(b"a picture")
    return folder


def test_results_are_filed_under_the_gpus_name_with_the_commit(results, tmp_path):
    written = record.record(results, tmp_path / "results")
    assert [file.name for file in written] == ["gpu_h200.json", "copy_h200.json", "vocab_h200.json", "gpu_h200.png"]
    assert json.loads(written[0].read_text())["commit"] == "0123456789ab"
    assert json.loads(written[1].read_text())["machine"]["commit"] == "0123456789ab"
    assert written[-1].read_bytes() == b"a picture"


def change(results, **values):
    file = results / "gpu.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_without_a_repository_the_sources_tell_the_commit(results, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "commit", lambda: "ba9876543210")
    change(results, commit=None)
    (report, *_) = record.record(results, tmp_path / "results")
    assert json.loads(report.read_text())["commit"] == "ba9876543210"
    change(results, sources="others")
    with pytest.raises(record.RecordError, match="of other sources than these"):
        record.record(results, tmp_path / "results")


def test_what_is_no_result_of_a_gpu_is_not_filed(results, tmp_path):
    change(results, machine={"gpu": None})
    with pytest.raises(record.RecordError, match="was not made on a GPU"):
        record.record(results, tmp_path / "results")
    with pytest.raises(record.RecordError, match="cannot be read"):
        record.record(tmp_path, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_the_command_line_files_and_refuses(results, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--record", str(tmp_path)])
    assert gpu_check.main() == 1
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    ("name", "label"), [("NVIDIA H200", "h200"), ("NVIDIA A100-SXM4-80GB", "a100_sxm4_80gb"), ("Other", "other")]
)
def test_labels(name, label):
    assert machine.label(name) == label


def test_the_digest_tells_sources_apart(tmp_path):
    (tmp_path / "setup.py").write_text("one")
    first = machine.sources_digest(tmp_path)
    (tmp_path / "csrc" / "__pycache__").mkdir(parents=True)
    (tmp_path / "csrc" / "__pycache__" / "x.py").write_text("made")
    assert machine.sources_digest(tmp_path) == first
    (tmp_path / "setup.py").write_text("two")
    assert machine.sources_digest(tmp_path) != first


def test_figures_by_size():
    series = plots.by_size([figure("D2H, 64 KiB", "GB/s", 10.0, 9.0), figure("D2H, best chunk", "GB/s", 50.0)])
    assert series == {"GB/s": {"D2H": [(65536, 10.0)], "D2H, peer": [(65536, 9.0)]}}


def test_sides_by_quantity_and_case():
    figures = [figure("S+T beside torch, V=128k, p=1", "TFLOP/s", 700.0, 200.0)]
    figures += [figure("S+T beside liger-kernel tuned, V=128k, p=1", "TFLOP/s", 710.0, 500.0)]
    figures += [figure("S+T beside torch, Gemma-2-9B, p=1", "TFLOP/s", 650.0, 150.0)]
    figures += [figure("error of dX beside torch, V=128k, p=1", "", 2e-3, 2.5e-3)]
    figures += [figure("S+T, V=128k, p=1", "TFLOP/s", 705.0, 760.0)]
    assert plots.by_side(figures) == {
        "S+T, TFLOP/s": {
            "V=128k, p=1": {"pipert": 700.0, "torch": 200.0, "liger-kernel tuned": 500.0},
            "Gemma-2-9B, p=1": {"pipert": 650.0, "torch": 150.0},
        },
        "error of dX": {"V=128k, p=1": {"pipert": 2e-3, "torch": 2.5e-3}},
    }


def test_the_chosen_parts_are_parts():
    from pipert.bench import vocab
    from pipert.cli.bench import AREAS

    assert set(benching.AREAS) <= set(AREAS)
    assert list(benching.PARTS) == ["vocab"]
    assert set(benching.PARTS["vocab"]) <= set(vocab.PARTS)
    assert set(benching.PEERS) == {part for part in vocab.PARTS if part.startswith("beside_")}
    assert (benching.WHEELS / "requirements.txt").exists()


def test_every_panel_can_be_filled(results):
    report = json.loads((results / "gpu.json").read_text())
    panels = plots.panels(results, report)
    assert list(panels) == [
        "GPT of 1 B parameters, one process: loss", "copy: GB/s by size", "copy: GB/s", "vocab: S+T, TFLOP/s",
        "vocab: error of dX", "vocab: TFLOP/s", "vocab: MiB",
    ]  # fmt: skip
    for fill in panels.values():
        axes = MagicMock()
        fill(axes)
        assert axes.plot.called or axes.barh.called
    assert plots.title(report) == "NVIDIA H200, pipert 0123456789ab"


def test_the_picture_is_drawn(results):
    pytest.importorskip("matplotlib")
    assert plots.draw(results, json.loads((results / "gpu.json").read_text())) == plots.NAME
    assert (results / plots.NAME).read_bytes().startswith(b"\x89PNG")


def test_without_figures_there_is_no_picture(tmp_path):
    assert plots.draw(tmp_path, {}) is None
