"""``pipert schedules``: every schedule, one line each."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from pipert.schedules import SCHEDULES

LEGEND = """\
p ranks, m microbatches, v chunks (stages per rank); F, I, W: what a rank takes for the forward, the input gradient and
the weight gradient of one microbatch, B = I + W, F&B a forward and a backward that run together. bubble: how long a
rank is idle between its first and its last op, when m fills the pipeline (m >= p; 2p-1 for zb-h2, zb-v and the blocks
of zeropp; 2p for dualpipe and dualpipe-v, whose formula is for F = I >= W) and is a multiple of the schedule's groups.
peak: the activations of the fullest rank, where 1 is all that one microbatch leaves on a rank, from its F to its B or
W. chimera, bitpipe and dualpipe have two directions: each rank holds the parameters of two places in the pipeline.

Draw one: pipert plan zb-h1 --ranks 4 --microbatches 8"""


def schedules(
    as_json: Annotated[bool, typer.Option("--json", help="Print a list with one object per schedule.")] = False,
) -> None:
    """List the schedules: bubble and memory formula, and the paper."""
    rows = [
        {
            "name": name,
            "chunks": "v" if schedule.chunks_vary else str(schedule.num_chunks),
            "bubble": schedule.bubble,
            "peak": schedule.peak,
            "paper": schedule.paper,
        }
        for name, schedule in SCHEDULES.items()
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    lines = [tuple(rows[0]), *(tuple(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    typer.echo(f"\n{LEGEND}")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(schedules)
