"""``pipert bench``: the microbenchmarks, with the peer's figures and the bars beside them."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape

from pipert.errors import ConfigError

if TYPE_CHECKING:
    from pipert.bench.compare import Old
    from pipert.bench.figure import Figure

AREAS: Mapping[str, str] = {
    "runtime": "the runtime beside torch.distributed.pipelining, in turns",
    "planner": "planning at scale",
    "bubbles": "what searches reach",
    "launch": "calls of the CUDA driver, hops between streams, and what the engine adds",
    "copy": "pinned memory to and from a CUDA device",
    "p2p": "messages between ranks on a CUDA device",
}
_ON_GPU = ("launch", "copy", "p2p")
_PEERS = {
    "runtime": "torch.distributed.pipelining of torch {}, over gloo",
    "launch": "torch.distributed.pipelining and torch.cuda.graph of torch {}",
    "copy": "pinned copies of torch {}",
    "p2p": "plain copies within the device",
}


def bench(
    area: str = typer.Argument("runtime", help=f"What to measure: {', '.join(AREAS)}."),
    as_json: bool = typer.Option(False, "--json", help="Print the figures as JSON."),
    out: Path | None = typer.Option(
        None, "-o", "--out", help="Also write the JSON to this file; in a folder, to AREA_MACHINE.json."
    ),
    compare: Path | None = typer.Option(
        None, "--compare", help="An older file of the area, or its folder: adds a verdict to each figure."
    ),
) -> None:
    """Measure the runtime, planning, or work on a CUDA device, beside a peer where there is one.

    Each area takes some minutes; launch, copy and p2p need a CUDA device.

    Keep the machine otherwise idle: a bar that is missed, and a figure that became slower, is shown, and changes no
    exit code.
    """
    if area not in AREAS:
        raise ConfigError(f"unknown area {area!r}; there is: {', '.join(AREAS)}")
    if out is not None and not out.parent.is_dir():
        raise ConfigError(f"{out.parent} is not a folder")
    from pipert.bench import compare as comparing
    from pipert.bench import machine

    found = machine.describe()
    file_name = f"{area}_{machine.label(found)}.json"
    old = None if compare is None else comparing.load(_in_folder(compare, file_name), area)
    if area in _ON_GPU:
        from pipert.bench import gpu

        gpu.device()
    before = machine.gpu_state()
    figures, unavailable = _measure(area)
    found = machine.with_states(found, before)
    if old is not None:
        for warning in comparing.warnings(found, old):
            Console(stderr=True, highlight=False).print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True)
    peer = _PEERS[area].format(found["torch"]) if area in _PEERS else None
    result = {"area": area, "peer": peer, "machine": found, **_result(figures, unavailable, old)}
    text = json.dumps(result, indent=1)
    if out is not None:
        _in_folder(out, file_name).write_text(text + "\n")
    if as_json:
        typer.echo(text)
    else:
        _show(figures, unavailable, peer, old)


def _measure(area: str) -> tuple[list[Figure], dict[str, str]]:
    """Return the figures of every part, and why parts could not be measured."""
    from pipert.bench.figure import Unavailable

    parts = importlib.import_module(f"pipert.bench.{area}").PARTS
    figures: list[Figure] = []
    unavailable = {}
    with Console(stderr=True).status("") as status:
        for name, measure in parts.items():
            status.update(f"measuring: {name.replace('_', ' ')}")
            try:
                figures += measure()
            except Unavailable as reason:
                unavailable[name] = str(reason)
    return figures, unavailable


def _result(figures: list[Figure], unavailable: dict[str, str], old: Old | None) -> dict[str, Any]:
    from pipert.bench import compare
    from pipert.bench.figure import as_json

    rows = as_json(figures)
    if old is None:
        return {"figures": rows, "unavailable": unavailable}
    for row, (was, verdict) in zip(rows, compare.verdicts(figures, old).values(), strict=True):
        row |= {"was": was, "verdict": verdict}
    gone = compare.missing(figures, old)
    return {"figures": rows, "unavailable": unavailable, "compared_with": str(old.path), "gone": gone}


def _show(figures: list[Figure], unavailable: dict[str, str], peer: str | None, old: Old | None) -> None:
    from pipert.bench import compare
    from pipert.bench.figure import as_table

    console = Console(highlight=False)
    console.print(as_table(figures, None if old is None else compare.verdicts(figures, old)))
    for name, reason in unavailable.items():
        console.print(f"[yellow]not measured:[/] {name.replace('_', ' ')}: {escape(reason)}", soft_wrap=True)
    if peer is not None:
        console.print(f"peer: {peer}")
    if old is not None:
        for name in compare.missing(figures, old):
            console.print(f"[yellow]gone:[/] {escape(name)}", soft_wrap=True)


def _in_folder(path: Path, file_name: str) -> Path:
    return path / file_name if path.is_dir() else path


def register(app: typer.Typer) -> None:
    """Add ``bench`` to the command line."""
    app.command()(bench)
