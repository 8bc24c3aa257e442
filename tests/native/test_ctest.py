"""Builds the C++ tests and runs them through ctest."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
# The tools of this Python's environment come first, whether or not it is activated.
PATH = os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]])


def run(*command):
    result = subprocess.run(command, cwd=ROOT, env={**os.environ, "PATH": PATH}, capture_output=True, text=True)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.mark.timeout(600)
def test_native_tests():
    generator = ["-GNinja"] if shutil.which("ninja", path=PATH) else []
    options = ["-DPIPERT_BUILD_TESTS=ON", "-DPIPERT_CUDA=OFF"]
    run("cmake", "-S", "csrc", "-B", "build/native", *generator, *options)
    run("cmake", "--build", "build/native", "--parallel", "2")
    output = run("ctest", "--test-dir", "build/native", "--output-on-failure", "--timeout", "120")
    assert "100% tests passed" in output
