"""The GPU kernels, one and all, in Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

triton = pytest.importorskip("triton")
HERE = Path(__file__).parent


def version(text):
    return tuple(int(part) for part in text.split(".")[:2])


@pytest.mark.timeout(600)
@pytest.mark.skipif(
    version(triton.__version__) < (3, 7) and version(numpy.__version__) >= (2, 4),
    reason="the interpreter of Triton before 3.7 fails with this NumPy",
)
@pytest.mark.parametrize("file", sorted(path.name for path in (HERE / "interpreted").glob("check_*.py")))
def test_in_the_interpreter(file):
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(HERE / "interpreted" / file)]
    done = subprocess.run(
        command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, cwd=HERE.parents[1]
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
