"""Compiles the stand-ins for libraries that need a GPU, for tests that load them; native tests have CMake's."""

import os
import pathlib
import subprocess
import tempfile

FAKE = pathlib.Path(__file__).resolve().parent
ROOT = FAKE.parents[1]
CSRC = ROOT / "csrc"
BUILD = ROOT / "build" / "fake"


def fake_cuda() -> pathlib.Path:
    """The path of a CUDA driver that runs on the host (name it in ``PIPERT_LIBCUDA``)."""
    return _library("libfake_cuda.so", [*sorted((FAKE / "cuda").glob("*.cpp")), CSRC / "core" / "futex.cpp"])


def fake_nccl() -> pathlib.Path:
    """The path of an NCCL that runs on the host, over that driver (name it in ``PIPERT_NCCL``)."""
    return _library("libfake_nccl.so", sorted((FAKE / "nccl").glob("*.cpp")))


def _library(name: str, sources: list[pathlib.Path]) -> pathlib.Path:
    library = BUILD / name
    headers = [*FAKE.glob("*/*.h"), *(CSRC / "core").glob("*.h"), *(CSRC / "transport" / "nccl").glob("*.h")]
    newest = max(file.stat().st_mtime for file in [*sources, *headers, pathlib.Path(__file__)])
    if library.exists() and library.stat().st_mtime > newest:
        return library
    BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as scratch:
        made = pathlib.Path(scratch) / name
        flags = ["-std=c++20", "-O1", "-g", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden", "-Wl,-z,nodelete"]
        command = [os.environ.get("CXX", "c++"), *flags, f"-I{CSRC}", "-o", made, *sources, "-ldl"]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            raise RuntimeError(f"{name} does not compile:\n{result.stderr}")
        made.replace(library)  # whole at any moment, though several tests may build it at once
    return library
