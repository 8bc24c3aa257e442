import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipert import launch
from pipert.errors import ConfigError

SHOW = "import os; print(*(os.environ[n] for n in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'OMP_NUM_THREADS')), flush=True)"


def sh(text):
    return ["sh", "-c", text]


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_ranks_get_torchruns_environment(capfd, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert launch.run([sys.executable, "-c", SHOW], 2) == 0
    assert sorted(capfd.readouterr().out.splitlines()) == ["0 0 2 1", "1 1 2 1"]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert launch.run([sys.executable, "-c", SHOW], 1) == 0
    assert capfd.readouterr().out.split()[-1] == "2"


@pytest.mark.parametrize(("command", "status"), [("exit 3", 3), ("kill -9 $$", 137), ("exit 0", 0)])
def test_the_exit_status_is_that_of_the_first_failure(command, status):
    assert launch.run(sh(f'[ "$RANK" = 0 ] || {command}'), 2) == status


def test_the_rest_is_killed_some_time_after_the_first_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "GRACE_S", 0.2)
    assert launch.run(sh(f'[ "$RANK" = 1 ] && exit 4; sleep 100 & echo $! > {tmp_path}/pid; exec sleep 100'), 2) == 4
    wait_until(lambda: not is_alive((tmp_path / "pid").read_text().strip()))


def test_what_a_rank_leaves_running_is_ended(tmp_path):
    assert launch.run(sh(f"sleep 100 & echo $! > {tmp_path}/pid"), 1) == 0
    wait_until(lambda: not is_alive((tmp_path / "pid").read_text().strip()))


LAUNCHER = """
import sys
from pipert import launch
sys.exit(launch.run(["sh", "-c", sys.argv[1]], 2))
"""


def start_launcher(script, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", LAUNCHER, script])
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    return process


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signals_reach_every_rank(signum, tmp_path):
    name = signum.name.removeprefix("SIG")
    script = (
        f"trap 'echo got > {tmp_path}/$RANK; exit 0' {name}; echo up > {tmp_path}/$RANK; while :; do sleep 0.05; done"
    )
    process = start_launcher(script, tmp_path)
    process.send_signal(signum)
    assert process.wait(10) == 0
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["got\n", "got\n"]


def test_an_interrupt_is_the_exit_status_whatever_the_ranks_make_of_it(tmp_path):
    script = f"trap 'exit 3' INT; echo up > {tmp_path}/$RANK; while :; do sleep 0.05; done"
    process = start_launcher(script, tmp_path)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130


def test_ranks_die_with_a_killed_launcher(tmp_path):
    process = start_launcher(f"echo $$ > {tmp_path}/$RANK; sleep 100", tmp_path)
    wait_until(lambda: all((tmp_path / rank).read_text() for rank in "01"))
    process.kill()
    process.wait()
    for rank in "01":
        wait_until(lambda rank=rank: not is_alive((tmp_path / rank).read_text().strip()))


def test_no_file_descriptor_is_left_open():
    before = len(os.listdir("/proc/self/fd"))
    assert launch.run(sh("exit 0"), 2) == 0
    assert len(os.listdir("/proc/self/fd")) == before


def test_bad_arguments_are_refused():
    with pytest.raises(ConfigError, match="at least 1, not 0"):
        launch.run(["true"], 0)
    with pytest.raises(ConfigError, match="cannot start '/no/such/program'"):
        launch.run(["/no/such/program"], 2)
