"""``pipert train --device cuda``: it computes what one process does, and goes on from what a CPU has saved."""

import json
import sys

import pytest
from processes import LAUNCH, ROOT, run_python
from where import WHERE

pytestmark = pytest.mark.gpu

SMALL = ["--layers=4", "--dim=64", "--heads=2", "--seq-len=32", "--batch-size=2", "--microbatches=4", "--name=run"]
PIPERT = [ROOT / "tests" / "fake" / "train_as_cuda.py"] if WHERE == "as-cuda" else ["-m", "pipert"]


@pytest.fixture
def train(tmp_path):
    (tmp_path / "text").write_bytes(b"".join(b"%d squared is %d. " % (i, i * i) for i in range(2000)))

    def train(*options, num_ranks=1):
        words = [*PIPERT, "train", *SMALL, "--data=text", *options]
        if num_ranks > 1:
            words = ["-c", LAUNCH, num_ranks, sys.executable, *words]
        code, out, errors = run_python(*words, cwd=tmp_path)
        assert code == 0, errors[-4000:]
        return json.loads((tmp_path / "runs" / "run" / "summary.json").read_text()), out

    return train


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_all_ranks_in_one_process(train, dtype):
    options = ["--device=cuda", "--one-process", "--ranks=2", "--steps=3", "--verify", f"--dtype={dtype}"]
    summary, out = train(*options, "--recompute")
    assert summary["bitwise_equal"] is True
    assert (summary["device"] == "cpu") == (WHERE == "as-cuda")
    assert "bit for bit" in out


def test_two_processes(train):
    summary, _ = train("--device=cuda", "--schedule=1f1b", "--steps=3", "--verify", num_ranks=2)
    assert summary["bitwise_equal"] is True
    summary, _ = train(
        "--device=cuda", "--post-validation", "--untied", "--schedule=zb-h1", "--steps=3", "--verify", num_ranks=2
    )
    assert summary["bitwise_equal"] is True


def test_a_checkpoint_of_the_cpu_goes_on_there_and_back(train):
    first, _ = train("--one-process", "--ranks=2", "--steps=6", "--save=out", "--save-every=2")
    on_device = ["--device=cuda", "--schedule=1f1b", "--steps=6", "--resume=out/step-000002", "--save=device"]
    rest, _ = train(*on_device, "--save-every=2", num_ranks=2)
    assert rest["losses"] == pytest.approx(first["losses"][2:], rel=1e-4)
    last, _ = train("--one-process", "--ranks=2", "--steps=6", "--resume=device/step-000004")
    assert last["losses"] == pytest.approx(first["losses"][4:], rel=1e-4)
