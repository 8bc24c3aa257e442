"""``pipert schedules``: every schedule, one line each."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from pipert.schedules import SCHEDULES

LEGEND = """\
p ranks, m microbatches, v chunks (stages per rank); F, I, W: what a rank takes for the forward, the input gradient and
the weight gradient of one microbatch, B = I + W. bubble: how long a rank is idle in a step, for m >= p. peak: the
activations of the fullest rank, where 1 is all that one microbatch leaves on a rank, from its F to its B or W.

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
    table = Table(*rows[0], box=None, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*row.values())
    console = Console(highlight=False)
    console.print(table)
    console.print(f"\n{LEGEND}", soft_wrap=True)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(schedules)
