"""What is said where a CUDA driver is missing, too old, or has no device; needs no GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake.libraries import fake_cuda

ROOT = Path(__file__).parents[2]

ASK = """
from pipert import _core
from pipert.errors import CudaError
print(_core.cuda_device_count())
try:
    print(_core.cuda_driver_version())
except CudaError as error:
    print(error)
"""

# A driver of so many functions that tells only its version.
STUB = """
extern "C" int cuDriverGetVersion(int* version) { *version = 12080; return 0; }
"""


def run(*command, **environment):
    fixed = {"PYTHONPATH": str(ROOT), "COLUMNS": "140"}
    process = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, **fixed, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return process.returncode, process.stdout, process.stderr


def ask(**environment):
    code, out, errors = run("-c", ASK, **environment)
    assert code == 0, errors
    count, answer = out.splitlines()
    return int(count), answer


def test_a_driver_that_works():
    assert ask(PIPERT_LIBCUDA=str(fake_cuda()), FAKE_CUDA_DEVICES="3") == (3, "13000")


def test_no_driver():
    count, answer = ask(PIPERT_LIBCUDA="/no/such/libcuda.so")
    assert count == 0
    assert answer.startswith("no CUDA driver: /no/such/libcuda.so cannot be opened (")


def test_a_driver_that_is_too_old():
    count, answer = ask(PIPERT_LIBCUDA=str(fake_cuda()), FAKE_CUDA_VERSION="11040")
    assert count == 0
    assert answer.startswith("the CUDA driver is too old: it is for CUDA 11.4, pipert needs ")


def test_a_driver_that_lacks_a_function(tmp_path):
    (tmp_path / "stub.cpp").write_text(STUB)
    library = tmp_path / "libcuda.so.1"
    subprocess.run([os.environ.get("CXX", "c++"), "-shared", "-fPIC", "-o", library, tmp_path / "stub.cpp"], check=True)
    count, answer = ask(PIPERT_LIBCUDA=str(library))
    assert count == 0
    assert "the CUDA driver is too old: it is for CUDA 12.8" in answer
    assert "(it lacks cu" in answer


def test_no_device():
    """As where ``CUDA_VISIBLE_DEVICES`` hides all of them."""
    assert ask(PIPERT_LIBCUDA=str(fake_cuda()), FAKE_CUDA_DEVICES="0") == (
        0,
        "the CUDA driver finds no device (CUDA_VISIBLE_DEVICES may hide it)",
    )


def test_a_driver_that_does_not_start():
    count, answer = ask(PIPERT_LIBCUDA=str(fake_cuda()), FAKE_CUDA_FAIL="cuInit:1:999")
    assert count == 0
    assert answer == "the CUDA driver does not start: cuInit returned CUDA_ERROR_UNKNOWN"


@pytest.mark.parametrize("options", [[], ["--one-process"]])
def test_train_says_why_there_is_no_device(options):
    code, _, errors = run("-m", "pipert", "train", "--device=cuda", *options, PIPERT_LIBCUDA="/no/such/libcuda.so")
    assert code == 1
    assert errors.startswith("error: --device cuda: no CUDA driver: /no/such/libcuda.so cannot be opened")
    assert "without --device the ranks compute on the CPU" in " ".join(errors.split())


def test_doctor_says_why_there_is_no_device():
    _, out, _ = run("-m", "pipert", "doctor", PIPERT_LIBCUDA=str(fake_cuda()), FAKE_CUDA_DEVICES="0")
    assert "CUDA_VISIBLE_DEVICES" in out


TORCH = """
import torch
torch.backends.cuda.is_built = lambda: {built}
torch.cuda.init = lambda: (_ for _ in ()).throw(RuntimeError("the driver and this build do not fit"))
from pipert.errors import ConfigError
from pipert.train.device import open_device
try:
    open_device("cuda", deterministic=False)
except ConfigError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("built", "message"),
    [(False, "is built without CUDA; install one with it"), (True, "the driver and this build do not fit")],
)
def test_torch_that_cannot_use_the_device(built, message):
    code, out, errors = run("-c", TORCH.format(built=built), PIPERT_LIBCUDA=str(fake_cuda()))
    assert code == 0, errors
    assert out.startswith("--device cuda: ")
    assert message in out
