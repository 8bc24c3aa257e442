"""The GPU kernels, one and all, in Triton's interpreter."""

import sys
from pathlib import Path

import numpy
import pytest
from background import Background, Command

triton = pytest.importorskip("triton")
FOLDER = Path(__file__).parent / "interpreted"
FILES = sorted(path.name for path in FOLDER.glob("check_*.py"))


def version(text):
    return tuple(int(part) for part in text.split(".")[:2])


CANNOT = version(triton.__version__) < (3, 7) and version(numpy.__version__) >= (2, 4)
BACKGROUND = Background(
    {
        name: Command(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", FOLDER / name],
            {"TRITON_INTERPRET": "1"},
        )
        for name in ([] if CANNOT else FILES)
    }
)


@pytest.mark.timeout(900)
@pytest.mark.skipif(CANNOT, reason="the interpreter of Triton before 3.7 fails with this NumPy")
@pytest.mark.parametrize("name", FILES)
def test_in_the_interpreter(name):
    status, output = BACKGROUND.result(name)
    assert status == 0, output[-6000:]
