"""Builds the C++ tests and runs them through ctest."""

import os
import pathlib
import shutil
import sys

import pytest
from background import Background, Command

# The tools of this Python's environment come first, whether or not it is activated.
PATH = os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]])
CONFIGURE = [
    "cmake", "-S", "csrc", "-B", "build/native", *(["-GNinja"] if shutil.which("ninja", path=PATH) else []),
    "-DPIPERT_BUILD_TESTS=ON", "-DPIPERT_CUDA=OFF",
]  # fmt: skip
CTEST = ["ctest", "--test-dir", "build/native", "--output-on-failure", "--timeout", "120"]
BACKGROUND = Background(
    {
        "configure": Command(CONFIGURE, {"PATH": PATH}),
        "build": Command(["cmake", "--build", "build/native", "--parallel", "2"], {"PATH": PATH}),
        "ctest": Command(CTEST, {"PATH": PATH}),
    }
)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("step", ["configure", "build", "ctest"])
def test_native_tests(step):
    status, output = BACKGROUND.result(step)
    assert status == 0, output
    assert step != "ctest" or "100% tests passed" in output
