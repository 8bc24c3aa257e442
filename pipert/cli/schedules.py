"""``pipert schedules``: every schedule, one line each; with sizes, also what it comes to at given costs."""

from __future__ import annotations

import enum
import json
from typing import Annotated

import typer

from pipert.cli import inputs
from pipert.errors import ConfigError
from pipert.schedules import SCHEDULES
from pipert.schedules.registry import hint

LEGEND = """\
p ranks, m microbatches, v chunks (stages per rank); F, I, W: what a rank takes for the forward, the input gradient and
the weight gradient of one microbatch, B = I + W, F&B a forward and a backward that run together. bubble: how long a
rank is idle between its first and its last op, when m fills the pipeline (m >= p; 2p-1 for zb-h2, zb-v and the blocks
of zeropp; 2p for dualpipe and dualpipe-v, whose formula is for F = I >= W) and is a multiple of the schedule's groups.
peak: the activations of the fullest rank, where 1 is all that one microbatch leaves on a rank, from its F to its B or
W. chimera, bitpipe and dualpipe have two directions: each rank holds the parameters of two places in the pipeline.
Their formulas are for an even p; an odd p has the bubble of p + 1.

Draw one: pipert plan zb-h1 --ranks 4 --microbatches 8
Compare them: pipert schedules --ranks 8 --microbatches 24 --costs F=18.5,I=18.1,W=9.3,p2p=0.6"""


class Format(str, enum.Enum):
    """How ``pipert schedules`` writes its table."""

    TABLE = "table"
    MARKDOWN = "markdown"
    JSON = "json"


def schedules(
    ranks: inputs.Ranks = None,
    microbatches: inputs.Microbatches = None,
    costs: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=NUMBER,…",
            help=f"May be given several times: each adds the bubble over the longest rank's span, and the peak of the "
            f"fullest rank. {inputs.COSTS_HELP}",
        ),
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Leave a schedule out; may be given several times.")
    ] = None,
    format: Annotated[Format, typer.Option(help="How to print the table.")] = Format.TABLE,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> None:
    """List the schedules: bubble and memory formula, and the paper; with sizes, the figures at some costs.

    pipert schedules

    pipert schedules --ranks 8 --microbatches 24 --costs F=1,I=1,W=1 --costs F=18.5,I=18.1,W=9.3,p2p=0.6
    """
    left_out = without or []
    for name in left_out:
        if name not in SCHEDULES:
            raise ConfigError(f"--without: no schedule is called {name!r}; {hint(name)}")
    listed = {name: schedule for name, schedule in SCHEDULES.items() if name not in left_out}
    if not listed:
        raise ConfigError("--without leaves no schedule")
    rows = [
        {
            "name": name,
            "chunks": "v" if schedule.chunks_vary else str(schedule.num_chunks),
            "bubble": schedule.bubble,
            "peak": schedule.peak,
            "paper": schedule.paper,
        }
        for name, schedule in listed.items()
    ]
    if ranks is not None and microbatches is not None:
        for row, figures in zip(
            rows, _figures(tuple(listed), ranks, microbatches, costs or ["F=1,I=1,W=1"]), strict=True
        ):
            row |= figures
    elif ranks is not None or microbatches is not None or costs:
        raise ConfigError("figures need both --ranks and --microbatches")
    lines = [tuple(rows[0]), *(tuple(row.values()) for row in rows)]
    if as_json or format is Format.JSON:
        typer.echo(json.dumps(rows, indent=2))
    elif format is Format.MARKDOWN:
        lines.insert(1, ("---",) * len(rows[0]))
        for line in lines:
            typer.echo(f"| {' | '.join(line)} |")
    else:
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        typer.echo(f"\n{LEGEND}")


def _figures(names: tuple[str, ...], ranks: int, microbatches: int, costs: list[str]) -> list[dict[str, str]]:
    """Simulate the schedules at each of the costs; a dash where one of them refuses the sizes."""
    from pipert.cli.progress import progress_bar
    from pipert.sweep import cases, sweep

    figures: list[dict[str, str]] = [{} for _ in names]
    all_cases = cases(names, [ranks], [microbatches])
    with progress_bar("simulating", len(costs) * len(all_cases)) as advance:
        for text in costs:
            for cells, row in zip(figures, sweep(all_cases, inputs.load_costs(text, None)), strict=True):
                at = ", ".join(text.split(","))
                cells[f"bubble at {at}"] = "-" if row.bubble_rate_span is None else f"{row.bubble_rate_span:.2%}"
                cells[f"peak at {at}"] = "-" if row.peak_activation is None else f"{row.peak_activation:.4g}"
                advance(1)
    return figures


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(schedules)
