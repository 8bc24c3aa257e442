"""One rank goes wrong: every rank ends, with an error that names the rank and the op, and nothing stays behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipert import launch

SCRIPT = str(Path(__file__).parent / "rank_failures.py")
SCENARIOS = [
    "raise", "not-finite", "timeout", "missing-stages", "other-weights", "other-plan", "other-ranks", "other-seed",
    "bad-data",
]  # fmt: skip


def reports(directory, name, ranks=range(3)):
    return [json.loads((directory / f"{name}.{rank}").read_text()) for rank in ranks]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    directory = tmp_path_factory.mktemp("outcomes")
    assert launch.run([sys.executable, SCRIPT, str(directory), *SCENARIOS], 3) == 0
    return directory


def test_a_stage_that_raises(outcomes):
    first, guilty, last = reports(outcomes, "raise")
    assert (guilty["type"], guilty["cause"]) == ("StageError", "ValueError")
    assert (guilty["rank"], guilty["op"], guilty["step"]) == (1, "1F2", 1)
    assert "the stage is broken" in guilty["text"]
    for other in (first, last):
        assert (other["type"], other["rank"]) == ("PeerLost", 1)
        assert "1F2" in other["text"]
        assert "the stage is broken" in other["text"]


def test_a_loss_that_is_not_finite(outcomes):
    first, middle, last = reports(outcomes, "not-finite")
    assert last["type"] == "PipertError"
    assert (last["rank"], last["op"], last["step"]) == (2, "2F4", 1)
    assert "step 1: the loss of microbatch 4 is inf" in last["text"]
    assert [first["type"], middle["type"]] == ["PeerLost", "PeerLost"]


def test_a_rank_that_takes_too_long(outcomes):
    errors = reports(outcomes, "timeout")
    timed_out = [error for error in errors if error["type"] == "LaneTimeout"]
    assert timed_out
    assert {error["type"] for error in errors} <= {"LaneTimeout", "PeerLost"}
    for error in timed_out:
        assert error["op"]
        dump = json.loads(Path(error["text"].split("lanes are in ")[1]).read_text())
        assert dump["format"] == "pipert-dump"
        assert dump["step"] == 1
        assert len(dump["status"]["step"]) > 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing-stages", "stages 1 on rank 1 .*but stages none were given"),
        ("other-weights", "the replicas of stage 0 on ranks 0 and 2 differ in the parameter 'up.weight'"),
        ("other-plan", "rank 1 has another plan than rank 0"),
        ("other-ranks", "the plan is for 2 ranks, the process group has 3"),
        ("other-seed", "rank 1 has seed=1, rank 0 seed=0"),
    ],
)
def test_what_cannot_start_is_refused_on_every_rank(outcomes, name, message):
    for error in reports(outcomes, name):
        assert error["type"] == "ConfigError"
        assert re.search(message, error["text"])


def test_data_that_does_not_fit_on_one_rank(outcomes):
    first, *others = reports(outcomes, "bad-data")
    assert first["type"] == "ConfigError"
    assert "inputs: the plan has 6 microbatches, the list 5" in first["text"]
    for other in others:
        assert (other["type"], other["rank"]) == ("PeerLost", 0)
        assert "the plan has 6 microbatches" in other["text"]


def test_a_killed_rank(tmp_path):
    """The launcher gives the others five seconds; then it would kill them, and they would report nothing."""
    assert launch.run([sys.executable, SCRIPT, str(tmp_path), "kill"], 3) == 128 + signal.SIGKILL
    for error in reports(tmp_path, "kill", (0, 2)):
        assert (error["type"], error["rank"], error["step"]) == ("PeerLost", 1, 1)
        assert error["op"]


LAUNCH = "import sys; from pipert import launch; sys.exit(launch.run(sys.argv[1:], 3))"


def test_dump_on_request_then_ctrl_c(tmp_path):
    shared_memory = set(os.listdir("/dev/shm"))
    command = [sys.executable, "-c", LAUNCH, sys.executable, SCRIPT, str(tmp_path), "sleep"]
    launcher = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: len(list(tmp_path.glob("sleep.*.started"))) == 3)
    launcher.send_signal(signal.SIGUSR1)
    wait_until(lambda: len(list(tmp_path.glob("pipert-dump-*.json"))) == 3)
    assert {json.loads(path.read_text())["ranks"][0] for path in tmp_path.glob("*.json")} == {0, 1, 2}
    ranks = children(launcher.pid)
    assert len(ranks) == 3
    launcher.send_signal(signal.SIGINT)
    _, errors = launcher.communicate(timeout=20)
    assert launcher.returncode == 130
    assert "KeyboardInterrupt" in errors
    assert {error["type"] for error in reports(tmp_path, "sleep")} <= {"KeyboardInterrupt", "PeerLost"}
    assert not any(map(is_running, ranks))
    assert set(os.listdir("/dev/shm")) <= shared_memory


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
