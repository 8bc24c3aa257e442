"""Compiles the stand-ins for libraries that need a GPU, for tests that load them; native tests have CMake's."""

import os
import pathlib
import subprocess
import tempfile

FAKE = pathlib.Path(__file__).resolve().parent
ROOT = FAKE.parents[1]
CORE = ROOT / "csrc" / "core"
BUILD = ROOT / "build" / "fake"


def fake_cuda() -> pathlib.Path:
    """The path of a CUDA driver that runs on the host (name it in ``PIPERT_LIBCUDA``)."""
    return _library("cuda", "libfake_cuda.so")


def _library(folder: str, name: str) -> pathlib.Path:
    library = BUILD / name
    sources = [*sorted((FAKE / folder).glob("*.cpp")), CORE / "futex.cpp"]
    ingredients = [*sources, *(FAKE / folder).glob("*.h"), *CORE.glob("*.h"), pathlib.Path(__file__)]
    if library.exists() and library.stat().st_mtime > max(file.stat().st_mtime for file in ingredients):
        return library
    BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as scratch:
        made = pathlib.Path(scratch) / name
        flags = ["-std=c++20", "-O1", "-g", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden", "-Wl,-z,nodelete"]
        command = [os.environ.get("CXX", "c++"), *flags, f"-I{ROOT / 'csrc'}", "-o", made, *sources, "-ldl"]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            raise RuntimeError(f"{name} does not compile:\n{result.stderr}")
        made.replace(library)  # whole at any moment, though several tests may build it at once
    return library
