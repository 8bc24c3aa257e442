"""``pipert train --device cuda`` over the stand-in for a CUDA driver: it computes what one process does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "tests" / "fake" / "train_as_cuda.py")
LAUNCH = "import sys; from pipert import launch; sys.exit(launch.run(sys.argv[2:], int(sys.argv[1])))"
SMALL = ["--device=cuda", "--layers=4", "--dim=16", "--heads=2", "--seq-len=16", "--batch-size=1", "--microbatches=4"]


@pytest.fixture
def run(tmp_path):
    (tmp_path / "text").write_bytes(bytes(range(256)) * 8)

    def run(*options, num_ranks=1, **environment):
        command = [sys.executable, SCRIPT, "train", *SMALL, "--data=text", "--name=run", *options]
        if num_ranks > 1:
            command = [sys.executable, "-c", LAUNCH, str(num_ranks), *command]
        fixed = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "140", "FAKE_CUDA_JITTER_US": "50"}
        process = subprocess.run(
            command,
            cwd=tmp_path,
            env={**os.environ, **fixed, **environment},
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert process.returncode == 0, process.stderr
        return json.loads((tmp_path / "runs" / "run" / "summary.json").read_text()), process.stdout

    return run


def check(summary, text):
    assert summary["bitwise_equal"] is True
    assert "bit for bit" in text
    assert "ops on the GPU" in " ".join(text.split())
    assert summary["predicted_step_time_ms"] > 0
    assert summary["step_time_ms"] > 0


def test_all_ranks_in_one_process(run, tmp_path):
    summary, text = run("--one-process", "--ranks=2", "--schedule=zb-v", "--steps=3", "--verify", "--dtype=bf16")
    check(summary, text)
    events = json.loads((tmp_path / "runs" / "run" / "trace.json").read_text())["traceEvents"]
    assert {"0F0", "3F0", "0W3"} <= {event["name"] for event in events}


def test_two_ranks_over_ipc_save_and_go_on(run):
    options = ["--schedule=1f1b", "--verify", "--save=out"]
    summary, text = run(*options, "--steps=4", "--save-every=2", num_ranks=2)
    check(summary, text)
    rest, text = run(*options, "--steps=4", "--resume=out/step-000002", num_ranks=2)
    check(rest, text)
    assert rest["losses"] == summary["losses"][2:]


def test_post_validation_over_ipc(run):
    check(*run("--schedule=zb-h1", "--post-validation", "--untied", "--verify", "--steps=3", num_ranks=2))
