"""``pipert bench``: the microbenchmarks, with the peer's figures and the bars beside them."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
from pathlib import Path

import typer
from rich.console import Console

from pipert.errors import ConfigError
from pipert.version import __version__

AREAS = ("runtime", "planner", "bubbles")


def bench(
    area: str = typer.Argument("runtime", help=f"What to measure: {', '.join(AREAS)}."),
    as_json: bool = typer.Option(False, "--json", help="Print the figures as JSON."),
    out: Path | None = typer.Option(None, "-o", "--out", help="Also write the JSON to this file."),
) -> None:
    """Measure the runtime beside torch.distributed.pipelining, in turns, planning at scale, or what searches reach.

    Each area takes some minutes.

    Keep the machine otherwise idle: a bar that is missed is shown, and changes no exit code.
    """
    if area not in AREAS:
        raise ConfigError(f"unknown area {area!r}; there is: {', '.join(AREAS)}")
    if out is not None and not out.parent.is_dir():
        raise ConfigError(f"{out.parent} is not a folder")
    from pipert.bench.figure import as_json as to_json
    from pipert.bench.figure import as_table

    parts = importlib.import_module(f"pipert.bench.{area}").PARTS

    figures = []
    progress = Console(stderr=True)
    with progress.status("") as status:
        for name, measure in parts.items():
            status.update(f"measuring: {name.replace('_', ' ')}")
            figures += measure()
    torch_version = importlib.metadata.version("torch")
    peer = f"torch.distributed.pipelining of torch {torch_version}, over gloo" if area == "runtime" else None
    machine = {
        "pipert": __version__,
        "torch": torch_version,
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
    }
    text = json.dumps({"area": area, "peer": peer, "machine": machine, "figures": to_json(figures)}, indent=1)
    if out is not None:
        out.write_text(text + "\n")
    if as_json:
        typer.echo(text)
    else:
        console = Console(highlight=False)
        console.print(as_table(figures))
        if peer is not None:
            console.print(f"peer: {peer}")


def register(app: typer.Typer) -> None:
    """Add ``bench`` to the command line."""
    app.command()(bench)
