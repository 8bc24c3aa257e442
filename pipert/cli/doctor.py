"""``pipert doctor``: what is there, what is missing, and what that costs."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
from dataclasses import asdict, dataclass

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipert.version import __version__


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that pipert can use: what was found (None: missing), and what its absence costs."""

    name: str
    found: str | None
    cost: str
    required: bool = False


def _package(name: str, cost: str, *, required: bool = False) -> Finding:
    try:
        return Finding(name, importlib.metadata.version(name), cost, required)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, None, cost, required)


def _program(name: str, cost: str) -> Finding:
    return Finding(name, shutil.which(name), cost)


def _native() -> tuple[Finding, ...]:
    core = kernels = devices = nvtx = None
    reason = ""
    try:
        from pipert import _core
        from pipert.errors import CudaError

        core = _core.__version__
        kernels = (
            ", ".join(f"sm_{each.removesuffix('-real')}" for each in _core.cuda_kernel_architectures().split()) or None
        )
        nvtx = "built in" if _core.built_with_nvtx() else None
        try:
            devices = f"{_core.cuda_device_count()}, driver for CUDA {_cuda_version(_core.cuda_driver_version())}"
        except CudaError as error:
            reason = f": {error}"
    except ImportError:
        pass
    return (
        Finding("native core", core, "nothing can be checked, simulated or run: pip install -e .", required=True),
        Finding("CUDA kernels", kernels, "the engine runs on GPUs, its own kernels do not: install nvcc, build again"),
        Finding("CUDA devices", devices, f"ranks compute on the CPU{reason}"),
        Finding("NVTX", nvtx, "profilers do not show a plan's ops: pip install nvidia-nvtx and build again"),
    )


def _cuda_version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _cores() -> Finding:
    count = len(os.sched_getaffinity(0))
    return Finding("CPU cores", str(count), "with fewer cores than ranks, waits sleep and do not spin")


def examine() -> tuple[Finding, ...]:
    """Look for everything that pipert can use; imports neither torch nor any of the extras."""
    return (
        Finding("pipert", __version__, "", required=True),
        Finding("Python", platform.python_version(), "", required=True),
        *_native(),
        _cores(),
        _package("torch", "plans can be made, checked and simulated, not run", required=True),
        _package("megatron-core", "no drop-in engine for Megatron's scripts: pip install 'pipert[megatron]'"),
        _package("pytest-benchmark", "`make bench` does not run: pip install 'pipert[dev]'"),
        _package("nvtx", "profilers show ops, but not the steps around them: pip install nvtx"),
        _program("nvcc", "no CUDA backend can be built"),
        _program("nsys", "`pipert profile` has the engines' own times, and no kernels"),
    )


def _table(findings: tuple[Finding, ...]) -> Table:
    table = Table("", "found", "what its absence costs", box=None)
    for finding in findings:
        if finding.found is not None:
            table.add_row(finding.name, f"[green]{finding.found}[/]", "")
        else:
            colour = "red" if finding.required else "yellow"
            table.add_row(finding.name, f"[{colour}]missing[/]", escape(finding.cost))
    return table


def doctor(as_json: bool = typer.Option(False, "--json", help="Print the findings as JSON.")) -> None:
    """Show what is there, what is missing, and what that costs; exit 1 if pipert cannot run without it."""
    findings = examine()
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        Console(highlight=False).print(_table(findings))
    if any(finding.required and finding.found is None for finding in findings):
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Add ``doctor`` to the command line."""
    app.command()(doctor)
