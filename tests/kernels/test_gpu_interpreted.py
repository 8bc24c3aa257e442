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


FILES = sorted(path.name for path in (HERE / "interpreted").glob("check_*.py"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """All files at once, on as many cores as there are."""
    folder = tmp_path_factory.mktemp("interpreted")
    started = {}
    for name in FILES:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", HERE / "interpreted" / name]
        with (folder / name).open("w") as log:
            environment = os.environ | {"TRITON_INTERPRET": "1"}
            started[name] = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=HERE.parents[1]
            )
    yield started, folder
    for run in started.values():
        run.kill()
        run.wait()


@pytest.mark.timeout(600)
@pytest.mark.skipif(
    version(triton.__version__) < (3, 7) and version(numpy.__version__) >= (2, 4),
    reason="the interpreter of Triton before 3.7 fails with this NumPy",
)
@pytest.mark.parametrize("name", FILES)
def test_in_the_interpreter(runs, name):
    started, folder = runs
    assert started[name].wait() == 0, (folder / name).read_text()[-6000:]
