"""Starts the scripts of tests/multiprocess with their models on this device."""

import os
import subprocess
import sys
from pathlib import Path

from where import WHERE

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "tests" / "multiprocess"
_LAUNCH = "import sys; from pipert import launch; sys.exit(launch.run(sys.argv[2:], int(sys.argv[1])))"


def run_python(*arguments, timeout_s=110, **environment):
    """Run Python with these arguments; return its exit status, its output and its errors."""
    fixed = {
        "PYTHONPATH": str(ROOT),
        "PIPERT_TEST_DEVICE": "as-cuda" if WHERE == "as-cuda" else "cuda",
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, **fixed, **environment},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    return process.returncode, process.stdout, process.stderr


def run_ranks(num_ranks, script, *arguments, **options):
    """Run a script of tests/multiprocess in a process for each rank."""
    return run_python("-c", _LAUNCH, num_ranks, sys.executable, SCRIPTS / script, *arguments, **options)


def assert_done(result, num_ranks):
    """Check that every rank came to its end."""
    code, out, errors = result
    assert code == 0, errors[-4000:]
    assert sorted(out.split("\n")) == ["", *(f"rank {rank} done" for rank in range(num_ranks))]
