"""``pipert bench``: the microbenchmarks, with the peer's figures and the bars beside them."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape

from pipert.errors import ConfigError

if TYPE_CHECKING:
    from pipert.bench.compare import Old
    from pipert.bench.figure import Figure

    Measure = Callable[[], list[Figure]]

AREAS: Mapping[str, str] = {
    "runtime": "the runtime beside torch.distributed.pipelining, in turns",
    "planner": "planning at scale",
    "bubbles": "what searches reach",
    "launch": "calls of the CUDA driver, hops between streams, and what the engine adds",
    "copy": "pinned memory to and from a CUDA device",
    "p2p": "messages between ranks on a CUDA device",
    "vocab": "vocabulary-parallel output layers on a CUDA device, beside bare matrix products and other layers",
}
_ON_GPU = ("launch", "copy", "p2p", "vocab")
_PEERS = {
    "runtime": "torch.distributed.pipelining of torch {}, over gloo",
    "launch": "torch.distributed.pipelining and torch.cuda.graph of torch {}",
    "copy": "pinned copies of torch {}",
    "p2p": "plain copies within the device",
    "vocab": "the same matrix products by torch {}, or what a figure's name says",
}


def bench(
    area: str = typer.Argument("runtime", help=f"What to measure: {', '.join(AREAS)}."),
    only: list[str] | None = typer.Option(
        None, "--part", metavar="PART", help="Measure this part of the area alone; may be given several times."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the figures as JSON."),
    out: Path | None = typer.Option(
        None, "-o", "--out", help="Also write the JSON to this file; in a folder, to AREA_MACHINE.json."
    ),
    compare: Path | None = typer.Option(
        None, "--compare", help="An older file of the area, or its folder: adds a verdict to each figure."
    ),
) -> None:
    """Measure the runtime, planning, or work on a CUDA device, beside a peer where there is one.

    Each area takes some minutes; launch, copy, p2p and vocab need a CUDA device.

    Keep the machine otherwise idle: a bar that is missed, and a figure that became slower, is shown, and changes no
    exit code. A part that fails does: it is named at the end, after the figures of the others. So are those that an
    interrupt (Ctrl-C) leaves out.
    """
    if area not in AREAS:
        raise ConfigError(f"unknown area {area!r}; there is: {', '.join(AREAS)}")
    parts = _parts(area, only)
    if out is not None and not out.parent.is_dir():
        raise ConfigError(f"{out.parent} is not a folder")
    from pipert.bench import compare as comparing
    from pipert.bench import machine

    on_gpu = area in _ON_GPU
    if on_gpu:
        from pipert.bench import gpu

        gpu.device()
    found = machine.describe()
    file_name = f"{area}_{machine.label(found, on_gpu=on_gpu)}.json"
    old = None if compare is None else comparing.load(_in_folder(compare, file_name), area)
    if old is not None:
        for warning in comparing.warnings(found, old):
            Console(stderr=True, highlight=False).print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True)
    before = machine.gpu_state()
    measured = _measure(parts)
    found = machine.with_states(found, before)
    peer = _PEERS[area].format(found["torch"]) if area in _PEERS else None
    gone = [] if old is None or only else comparing.missing(measured.figures, old)
    result = {"area": area, "peer": peer, "machine": found, **_result(measured, old, gone)}
    text = json.dumps(result, indent=1)
    if out is not None:
        _in_folder(out, file_name).write_text(text + "\n")
    if as_json:
        typer.echo(text)
    else:
        _show(measured, peer, old, gone)
    if measured.failed:
        raise typer.Exit(1)


@dataclass
class _Measured:
    """The figures of all parts, and why parts have none: missing things, and errors."""

    figures: list[Figure] = field(default_factory=list)
    unavailable: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def _parts(area: str, only: list[str] | None) -> dict[str, Measure]:
    """Return the parts of an area that are wanted, in its order."""
    parts: dict[str, Measure] = importlib.import_module(f"pipert.bench.{area}").PARTS
    for name in only or ():
        if name not in parts:
            raise ConfigError(f"the area {area!r} has no part {name!r}; there is: {', '.join(parts)}")
    return {name: measure for name, measure in parts.items() if not only or name in only}


def _measure(parts: Mapping[str, Measure]) -> _Measured:
    """Measure every part, whatever becomes of the others."""
    from pipert.bench.figure import Unavailable

    measured = _Measured()
    interrupted = False
    with Console(stderr=True).status("") as status:
        for name, measure in parts.items():
            if interrupted:
                measured.failed[name] = "not begun: interrupted"
                continue
            status.update(f"measuring: {name.replace('_', ' ')}")
            try:
                measured.figures += measure()
            except KeyboardInterrupt:
                interrupted = True
                measured.failed[name] = "interrupted"
            except Unavailable as reason:
                measured.unavailable[name] = str(reason)
            except Exception as error:
                if os.environ.get("PIPERT_DEBUG"):
                    raise
                measured.failed[name] = f"{type(error).__name__}: {error}"
    return measured


def _result(measured: _Measured, old: Old | None, gone: list[str]) -> dict[str, Any]:
    from pipert.bench import compare
    from pipert.bench.figure import as_json

    rows = as_json(measured.figures)
    result = {"figures": rows, "unavailable": measured.unavailable, "failed": measured.failed}
    if old is None:
        return result
    for row, (was, verdict) in zip(rows, compare.verdicts(measured.figures, old).values(), strict=True):
        row |= {"was": was, "verdict": verdict}
    return {**result, "compared_with": str(old.path), "gone": gone}


def _show(measured: _Measured, peer: str | None, old: Old | None, gone: list[str]) -> None:
    from pipert.bench import compare
    from pipert.bench.figure import as_table

    console = Console(highlight=False)
    verdicts = None if old is None else compare.verdicts(measured.figures, old)
    console.print(as_table(measured.figures, verdicts))
    if peer is not None:
        console.print(f"peer: {peer}")
    lines = [
        *(("yellow", "gone", name) for name in gone),
        *(("yellow", f"not measured: {name.replace('_', ' ')}", why) for name, why in measured.unavailable.items()),
        *(("red", f"failed: {name.replace('_', ' ')}", why) for name, why in measured.failed.items()),
    ]
    for colour, what, text in lines:
        console.print(f"[{colour}]{what}:[/] {escape(text)}", soft_wrap=True)


def _in_folder(path: Path, file_name: str) -> Path:
    return path / file_name if path.is_dir() else path


def register(app: typer.Typer) -> None:
    """Add ``bench`` to the command line."""
    app.command()(bench)
