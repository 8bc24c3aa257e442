"""``pipert train`` as a user runs it: its ranks, its files, its exit codes."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from pipelines import two_way
from torch.distributed.checkpoint import FileSystemReader

import pipert
from pipert.passes import recompute
from pipert.train.summary import Summary

ROOT = pathlib.Path(__file__).parents[2]
SMALL = ["--layers=8", "--dim=16", "--heads=2", "--seq-len=16", "--batch-size=1", "--microbatches=4", "--data=text"]
COMMAND = [sys.executable, "-m", "pipert", "train"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", *COMMAND[1:]]


@pytest.fixture
def start(tmp_path):
    """Start a command in a folder with a text in it; whatever is left of it at the end is killed."""
    (tmp_path / "text").write_bytes(b"".join(b"%d squared is %d. " % (i, i * i) for i in range(2000)))
    started = []

    def start(command, *options):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
        process = subprocess.Popen(
            [*command, *options],
            cwd=tmp_path,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def run(start):
    def run(command, *options):
        process = start(command, *options)
        process.stdout_text, process.stderr_text = process.communicate(timeout=100)
        return process

    return run


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def children(pid):
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue
            if parent == pid:
                found.append(int(entry.name))
    return found


def wait_for_steps(process):
    """Wait until the ranks train; return their process ids."""
    for line in process.stdout:
        if line.startswith("1/"):
            return children(process.pid)
    pytest.fail(process.stderr.read())


def test_four_ranks_compute_what_one_process_does(run, tmp_path):
    process = run(COMMAND, *SMALL, "--steps=4", "--verify", "--name=first")
    assert process.returncode == 0, process.stderr_text
    assert "bit for bit" in process.stdout_text
    folder = tmp_path / "runs" / "first"
    assert (tmp_path / "runs" / "latest").resolve() == folder
    assert {path.name for path in folder.iterdir()} == {"summary.json", "plan.json", "trace.json", "timeline.html"}
    summary = summary_of(folder)
    assert set(summary) == set(Summary.__dataclass_fields__)
    assert summary["bitwise_equal"] is True
    assert (summary["schedule"], summary["num_ranks"], summary["num_microbatches"]) == ("zb-v", 4, 4)
    assert len(summary["losses"]) == summary["num_steps"] == 4
    assert 4 < summary["last_loss"] < 6
    assert len(summary["peak_activation_bytes"]) == 4
    assert min(summary["peak_activation_bytes"]) > 0
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    assert {"0F0", "7F0", "0W3"} <= {event["name"] for event in events}


def test_resume_on_other_ranks_and_schedule_goes_on_exactly(run, tmp_path):
    options = [*SMALL, "--steps=4", "--untied", "--positions=learned"]
    process = run(TORCHRUN, *options, "--schedule=1f1b", "--save=out", "--save-every=2", "--name=whole")
    assert process.returncode == 0, process.stderr_text
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"step-000002", "step-000004"}
    process = run(
        COMMAND, *options, "--one-process", "--recompute", "--verify", "--resume=out/step-000002", "--name=rest"
    )
    assert process.returncode == 0, process.stderr_text
    whole, rest = summary_of(tmp_path / "runs" / "whole"), summary_of(tmp_path / "runs" / "rest")
    assert whole["num_ranks"] == 2
    assert rest["losses"] == whole["losses"][2:]
    assert rest["bitwise_equal"] is True


def test_replicas_train_alike_and_are_saved_once(run, tmp_path):
    pipert.compile(two_way(3, 4)).save(tmp_path / "plan.json")
    options = [*SMALL, "--dtype=bf16"]
    process = run(COMMAND, *options, "--plan=plan.json", "--steps=2", "--verify", "--save=out", "--name=first")
    assert process.returncode == 0, process.stderr_text
    assert summary_of(tmp_path / "runs" / "first")["bitwise_equal"] is True
    saved = tmp_path / "out" / "step-000002"
    pieces = FileSystemReader(saved).read_metadata().storage_data.values()
    assert sum(file.stat().st_size for file in saved.glob("*.distcp")) == sum(piece.length for piece in pieces)
    process = run(COMMAND, *options, "--one-process", "--steps=3", "--resume=out", "--verify", "--name=rest")
    assert process.returncode == 0, process.stderr_text


def test_a_plan_file_in_bf16(run, tmp_path):
    program = pipert.schedules.build("zb-h1", num_ranks=2, num_microbatches=4)
    pipert.compile(recompute(program, [1])).save(tmp_path / "plan.json")
    process = run(COMMAND, *SMALL, "--steps=2", "--plan=plan.json", "--dtype=bf16", "--verify")
    assert process.returncode == 0, process.stderr_text
    summary = summary_of(tmp_path / "runs" / "latest")
    assert summary["bitwise_equal"] is True
    assert summary["schedule"] == "zb-h1"


def test_timed_compares_prediction_and_measurement(run, tmp_path):
    process = run(COMMAND, "--ranks=2", "--microbatches=4", "--timed=F=10,I=10,W=10", "--steps=3", "--name=timed")
    assert "off the predicted one" in process.stdout_text + process.stderr_text
    summary = summary_of(tmp_path / "runs" / "timed")
    assert summary["losses"] == []
    plan = pipert.compile(pipert.schedules.build("zb-v", num_ranks=2, num_microbatches=4))
    predicted = pipert.simulate(plan, pipert.Costs.per_rank(F=10, I=10, W=10)).makespan
    assert summary["predicted_step_time_ms"] == pytest.approx(predicted)
    assert summary["step_time_ms"] >= predicted


def test_a_loss_that_is_not_finite(run, tmp_path):
    process = run(COMMAND, *SMALL, "--ranks=2", "--steps=50", "--lr=1e30", "--save=out", "--save-every=1")
    assert process.returncode == 1
    assert "not finite" in process.stderr_text
    assert process.stderr_text.count("\n") == 1
    assert not (tmp_path / "runs" / "latest").exists()
    saved = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert saved
    assert all((tmp_path / "out" / name / "pipert.json").exists() for name in saved)


RAISE_ON_RANK_1 = """
import os
import pipert.cli
from pipert.train.model import Mlp
if os.environ["RANK"] == "1":
    def forward(self, x):
        raise OverflowError("too much")
    Mlp.forward = forward
pipert.cli.main()
"""


def test_a_stage_that_raises_is_told_once(run, tmp_path):
    (tmp_path / "rank.py").write_text(RAISE_ON_RANK_1)
    command = [sys.executable, "rank.py", "train", *SMALL, "--schedule=1f1b"]
    launch = f"import sys, pipert.launch; sys.exit(pipert.launch.run({command!r}, 2))"
    process = run([sys.executable, "-c", launch])
    assert process.returncode == 1
    assert process.stderr_text.count("Traceback") == 1
    assert process.stderr_text.count('raise OverflowError("too much")') <= 1
    errors = [line for line in process.stderr_text.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "rank 1, 1F0, step 0: OverflowError: too much" in errors[0]


def test_a_killed_rank_ends_the_others(start):
    process = start(COMMAND, *SMALL, "--steps=100000")
    ranks = wait_for_steps(process)
    assert len(ranks) == 4
    os.kill(ranks[2], signal.SIGKILL)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "rank 2" in errors
    assert "Traceback" not in errors
    assert not any(pathlib.Path(f"/proc/{rank}").exists() for rank in ranks)


def test_interrupt_leaves_nothing_behind(start):
    process = start(COMMAND, *SMALL, "--steps=100000")
    ranks = wait_for_steps(process)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.count("\n") <= 1
    assert not any(pathlib.Path(f"/proc/{rank}").exists() for rank in ranks)


def test_a_split_vocabulary_trains_and_is_saved_whole(run, tmp_path):
    options = [*SMALL, "--ranks=2", "--untied", "--verify"]
    split = run(COMMAND, *options, "--steps=3", "--vocab-parallel=1", "--save=out", "--name=split")
    assert split.returncode == 0, split.stderr_text
    assert "every loss and gradient equals the unsplit model's" in split.stdout_text
    assert summary_of(tmp_path / "runs/split")["bitwise_equal"] is None
    assert any(text.startswith("VSTATS") for text in pipert.Plan.load(tmp_path / "runs/split/plan.json").op_text)
    whole = run(COMMAND, *options, "--steps=5", "--resume=out", "--save=again", "--one-process", "--name=whole")
    assert whole.returncode == 0, whole.stderr_text
    assert "bit for bit" in whole.stdout_text
    names = FileSystemReader(tmp_path / "again/step-000005").read_metadata().state_dict_metadata
    assert names["model.embed.weight"].size == names["model.head.weight"].size == (256, 16)
