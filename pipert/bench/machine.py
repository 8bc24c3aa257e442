"""What a result was measured on: versions, the commit, and the GPU with its clocks, power and temperature."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from pipert.version import __version__

_TIMEOUT_S = 20
_STATE = {
    "clocks.sm": "sm_mhz",
    "clocks.mem": "memory_mhz",
    "power.draw": "power_w",
    "temperature.gpu": "temperature_c",
}
_FIXED = {"name": "name", "driver_version": "driver", "clocks.max.sm": "max_sm_mhz", "clocks.max.mem": "max_memory_mhz"}


def describe() -> dict[str, Any]:
    """Return the machine, as it stands in every result; None where something cannot be known."""
    return {
        "pipert": __version__,
        "commit": _commit(),
        "torch": importlib.metadata.version("torch"),
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "gpu": _gpu(),
    }


def gpu_state() -> dict[str, float | None] | None:
    """Return the GPU's clocks (MHz), power (W) and temperature (°C) as they are now; None without nvidia-smi."""
    values = _query(_STATE)
    return None if values is None else {name: _number(value) for name, value in values.items()}


def with_states(machine: dict[str, Any], before: dict[str, float | None] | None) -> dict[str, Any]:
    """Return the machine with the GPU's state before the measurement and now."""
    if machine["gpu"] is None:
        return machine
    return {**machine, "gpu": {**machine["gpu"], "before": before, "after": gpu_state()}}


def label(machine: dict[str, Any], *, on_gpu: bool) -> str:
    """Return what a stored result is called after: the GPU (``"h200"``) or the number of cores (``"2_cores"``)."""
    if not on_gpu:
        return f"{machine['cores']}_cores"
    name = re.sub(r"^nvidia\s+", "", machine["gpu"]["name"].lower())
    return re.sub(r"[^a-z0-9]+", "_", name).strip("_")


def _gpu() -> dict[str, Any] | None:
    values = _query(_FIXED) or _names_by_torch()
    if values is None:
        return None
    fixed: dict[str, Any] = {name: values.get(name) for name in _FIXED.values() if not name.startswith("max_")}
    limits = {name: _number(values.get(name, "")) for name in _FIXED.values() if name.startswith("max_")}
    return {**fixed, **limits, **_cuda_versions()}


def _names_by_torch() -> dict[str, str] | None:
    import torch

    return {"name": torch.cuda.get_device_name(0)} if torch.cuda.is_available() else None


def _cuda_versions() -> dict[str, str | None]:
    import torch

    from pipert import _core
    from pipert.errors import CudaError

    try:
        number = _core.cuda_driver_version()
    except CudaError:
        return {"driver_cuda": None, "torch_cuda": torch.version.cuda}
    return {"driver_cuda": f"{number // 1000}.{number % 1000 // 10}", "torch_cuda": torch.version.cuda}


def _query(fields: dict[str, str]) -> dict[str, str] | None:
    """Ask nvidia-smi about the GPU that the benchmarks run on; the answers are named as in ``fields``."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0] or "0"
    command = [program, f"--id={gpu}", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = result.stdout.strip().splitlines()
    if result.returncode != 0 or not lines:
        return None
    return dict(zip(fields.values(), (value.strip() for value in lines[0].split(",")), strict=True))


def _number(value: str) -> float | None:
    try:
        return float(value)
    except ValueError:  # "[N/A]"
        return None


def _commit() -> str | None:
    """Return the commit of the sources, "+" behind it where they differ from it; None outside of a repository."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None if result.returncode == 0 else None
