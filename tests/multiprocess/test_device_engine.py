"""An engine whose device is the stand-in of tests/fake: what it refuses, records and survives."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
RUN = [sys.executable, str(HERE.parent / "fake" / "run_as_cuda.py"), str(HERE / "device_engine.py")]

IN_ONE_PROCESS = (
    "refusals",
    "split_vocabulary",
    "traces",
    "captured_steps",
    "captured_ops",
    "ops_that_draw_random_numbers",
    "a_handler_that_raises",
    "a_loss_that_is_not_finite",
)


@pytest.mark.parametrize("what", IN_ONE_PROCESS)
def test_in_one_process(what):
    result = subprocess.run([*RUN, what], capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_rank_that_dies_while_the_device_waits_for_it():
    code = f"import sys; from pipert import launch; sys.exit(launch.run({[*RUN, 'a_rank_that_dies']!r}, 2))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert "rank 0 goes on" in result.stdout, result.stdout + result.stderr
