"""Lanes as streams: the bits of the reference, on a CUDA driver that runs on the host (tests/fake).

Everything is the engine's own code for a GPU except the device. Once work is delayed at random, so that what does not
wait for something it needs gives wrong numbers; once all streams share one hardware queue, which hangs what needs more.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
RUN = [sys.executable, str(HERE.parent / "fake" / "run_as_cuda.py")]
JITTER = {"FAKE_CUDA_JITTER_US": "30", "FAKE_CUDA_SEED": "7"}
ONE_QUEUE = {"FAKE_CUDA_MAX_CONNECTIONS": "1"}


def run(*command, **environment):
    result = subprocess.run(
        [*RUN, *map(str, command)], env={**os.environ, **environment}, capture_output=True, text=True, timeout=110
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return result.stdout


SOME = "zb-v or interleaved or two-way"


@pytest.mark.parametrize(
    ("weather", "transport", "chosen"),
    [(JITTER, "local", ""), (ONE_QUEUE, "local", SOME), (JITTER, "ipc", SOME), (JITTER, "nccl", SOME)],
)
def test_all_ranks_in_one_process(weather, transport, chosen):
    tests = HERE / "test_bits_one_process.py"
    assert " passed" in run(
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        tests,
        "-k",
        chosen,
        **weather,
        PIPERT_TEST_TRANSPORT=transport,
    )


@pytest.mark.parametrize("transport", ["ipc", "nccl"])
@pytest.mark.parametrize("weather", [JITTER, ONE_QUEUE])
def test_a_process_per_rank(weather, transport):
    schedules = ["1f1b", "zb-v", "interleaved", "dualpipe", "two-way"]
    script = [*RUN, str(HERE / "rank_bits.py"), *schedules]
    environment = {**os.environ, **weather, "PIPERT_TEST_TRANSPORT": transport}
    code = f"import sys; from pipert import launch; sys.exit(launch.run({script!r}, 3))"
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=110)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    assert sorted(result.stdout.split("\n")) == ["", *(f"rank {rank} done" for rank in range(3))]
