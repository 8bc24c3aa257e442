"""What a check ran on: programs, packages, the GPU, and which sources."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from gpucheck.place import ROOT, last_line
from gpucheck.rows import Row

PROGRAMS = ("nvcc", "c++", "cmake", "ninja", "nvidia-smi", "compute-sanitizer")
MODULES = (
    "setuptools", "pybind11", "torch", "triton", "typer", "rich", "numpy", "pytest", "pytest_timeout", "matplotlib",
)  # fmt: skip
_PACKAGES = ("torch", "triton", "cupy", "numpy", "pybind11", "pytest", "pytest-benchmark", "matplotlib", "typer")
_GPU_FIELDS = (
    "name", "driver_version", "memory.total", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.draw",
    "temperature.gpu", "compute_mode",
)  # fmt: skip
_TIMEOUT_S = 20
_SOURCES = ("csrc", "pipert", "kernels", "tests", "profiles", "setup.py", "pyproject.toml")
_SUFFIXES = (".py", ".pyi", ".cpp", ".h", ".cu", ".txt", ".toml", ".html", ".json")


def find_program(name: str) -> str | None:
    """Return the path of a program: on PATH, or beside nvcc, where CUDA's own tools are."""
    found = shutil.which(name)
    nvcc = shutil.which("nvcc")
    if found is None and nvcc is not None:
        found = shutil.which(name, path=str(Path(nvcc).resolve().parent))
    return found or shutil.which(name, path="/usr/local/cuda/bin")


def tools() -> list[Row]:
    """Return a row for each thing that the build, the tests and the plots need."""
    rows = []
    for program in PROGRAMS:
        path = find_program(program)
        rows.append(Row(program, path is not None, path or "not on PATH, and not where CUDA is"))
    for module in MODULES:
        found = importlib.util.find_spec(module) is not None
        rows.append(Row(module, found, "" if found else f"{sys.executable} has no {module}"))
    return rows


def describe() -> dict[str, Any]:
    """Return the machine and the versions of what is used."""
    return {
        "gpu": gpu(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
        "nvcc": _version(find_program("nvcc"), "--version"),
        "cmake": _version(find_program("cmake"), "--version", first=True),
        "packages": {name: _package(name) for name in _PACKAGES},
    }


def gpu() -> dict[str, str] | None:
    """Return what nvidia-smi says of the GPU now, clocks, power and temperature too; None where it says nothing."""
    program = find_program("nvidia-smi")
    if program is None:
        return None
    text = _output([program, f"--query-gpu={','.join(_GPU_FIELDS)}", "--format=csv,noheader"])
    lines = text.strip().splitlines()
    return dict(zip(_GPU_FIELDS, map(str.strip, lines[0].split(",")), strict=False)) if lines else None


def label(name: str) -> str:
    """Return what the results of a GPU are called after: ``"h200"`` for ``"NVIDIA H200"``."""
    return re.sub(r"[^a-z0-9]+", "_", re.sub(r"^nvidia\s+", "", name.lower())).strip("_")


def commit() -> str | None:
    """Return the commit of this tree, with a "+" where it has changes; None outside of a repository."""
    if not (ROOT / ".git").exists():
        return None
    return _output(["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--abbrev=12"]).strip() or None


def sources_digest(root: Path = ROOT) -> str:
    """Return a digest of the sources, by which a tree without its repository can be told."""
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(file for name in _SOURCES for file in _files(root / name)):
        digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    results = ROOT / "profiles" / "results"
    return [
        file
        for file in path.rglob("*")
        if file.suffix in _SUFFIXES
        and "__pycache__" not in file.parts
        and results not in file.parents
        and file.is_file()
    ]


def _package(name: str) -> str | None:
    for each in importlib.metadata.distributions():
        found = (each.metadata["Name"] or "").lower()
        if found == name or (name == "cupy" and found.startswith("cupy-cuda")):
            return each.version
    return None


def _version(program: str | None, option: str, *, first: bool = False) -> str | None:
    if program is None:
        return None
    text = _output([program, option])
    return text.splitlines()[0] if first and text else last_line(text)


def _output(command: list[str]) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout if result.returncode == 0 else ""
