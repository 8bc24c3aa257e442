"""The build, in place, with the Python that is there."""

from __future__ import annotations

from pathlib import Path

from gpucheck.machine import find_program
from gpucheck.place import ROOT, Place
from gpucheck.rows import Row

_ASK = "from pipert import _core; print(_core.cuda_kernel_architectures() or '-', _core.cuda_device_count())"


def link_kernels(root: Path) -> None:
    """Make kernels/ importable as pipert.kernels, as an installation would; git ignores the link."""
    link = root / "pipert" / "kernels"
    if not link.exists():
        link.symlink_to("../kernels")


def build(place: Place) -> list[Row]:
    """Build pipert/_core with CUDA; without nvcc, which has its own failed row, without kernels."""
    link_kernels(ROOT)
    with_kernels = find_program("nvcc") is not None
    environment = {
        "PIPERT_CUDA": "ON" if with_kernels else "OFF",
        "PIPERT_BUILD_DIR": str(ROOT / "build" / "gpu-extension"),
    }
    done = place.python("setup.py", "build_ext", "--inplace", cwd=ROOT, env=environment)
    if done.status != 0:
        return [Row("build", False, done.why, done.seconds)]
    asked = place.python("-c", _ASK)
    if asked.status != 0:
        return [Row("build", False, f"it does not load: {asked.why}", done.seconds)]
    architectures, _, devices = asked.text.strip().rpartition(" ")
    rows = [Row("build", with_kernels, f"kernels for {architectures}", done.seconds)]
    return [*rows, Row("devices", int(devices) > 0, f"{devices} CUDA devices that pipert can use")]
