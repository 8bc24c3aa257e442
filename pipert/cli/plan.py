"""``pipert plan``: make a schedule's program, and show or save it."""

from __future__ import annotations

import dataclasses
import enum
import pathlib
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from pipert.cli import inputs
from pipert.cli.searching import Seed, TimeLimit, searching
from pipert.ir.csv import to_csv
from pipert.ir.grid import grid

if TYPE_CHECKING:
    from pipert.ir import Program
    from pipert.trace import Report


class Format(str, enum.Enum):
    """What ``pipert plan`` writes."""

    GRID = "grid"
    CSV = "csv"
    LOWERED_CSV = "lowered-csv"
    JSON = "json"
    SVG = "svg"


def plan(
    target: inputs.Target,
    ranks: inputs.Ranks = None,
    microbatches: inputs.Microbatches = None,
    chunks: inputs.Chunks = None,
    costs: inputs.CostsText = None,
    costs_file: inputs.CostsFile = None,
    costs_from: inputs.CostsFrom = None,
    memory_limit: inputs.MemoryLimit = None,
    post_validation: inputs.PostValidation = False,
    vocab_parallel: inputs.VocabParallel = inputs.VocabAlgorithm.OFF,
    time_limit: TimeLimit = None,
    seed: Seed = 0,
    format: Annotated[
        Format | None,
        typer.Option(
            help="grid: a picture in text, one row per rank. csv: the compute ops, as PyTorch's schedules read and "
            "write them. lowered-csv: the same with transfers. json: a plan file, compiled and verified. svg: a "
            "picture of the step at the given costs. "
            "Without this, as the output file is named, else grid."
        ),
    ] = None,
    output: Annotated[
        pathlib.Path | None, typer.Option("-o", "--output", help="Write to this file, not to the terminal.")
    ] = None,
) -> None:
    """Make a schedule's program: draw it, export it as CSV, or compile it into a plan file.

    The costs are for the prediction, under the grid and in the picture, and for schedules that are made from costs.

    pipert plan zb-h1 --ranks 4 --microbatches 8

    pipert plan zb-v --ranks 4 --microbatches 8 -o plan.json

    pipert plan zb-v --ranks 64 --microbatches 256 -o picture.svg

    pipert plan auto --ranks 8 --microbatches 32 --costs F=2,I=2,W=1,p2p=0.1 --memory-limit 8 --time-limit 30

    pipert plan zb-v --ranks 4 --microbatches 8 --vocab-parallel 2 --costs F=2,I=2,W=1.6,S=0.9,T=0.5

    pipert plan optimal --ranks 8 --microbatches 16 --chunks 1 --memory-limit 8

    pipert plan interleaved --ranks 4 --microbatches 8 --chunks 3 --format csv
    """
    from pipert import sources
    from pipert.lowering.lowered_csv import plan_to_csv
    from pipert.planfile import dumps
    from pipert.sim import simulate
    from pipert.view import timeline_svg

    known_costs = inputs.load_costs(costs, costs_file, costs_from=costs_from)
    bounds: list[float] = []
    with searching(time_limit, seed) as effort:
        source = sources.load(
            target,
            ranks=ranks,
            microbatches=microbatches,
            chunks=chunks,
            costs=known_costs,
            memory_limit=memory_limit,
            effort=dataclasses.replace(effort, proven=bounds.append),
        )
    source = inputs.split_vocabulary(source, vocab_parallel, known_costs, memory_limit)
    if post_validation:
        source = source.with_post_validation()
    chosen = format or _format_of(output)
    if chosen is Format.CSV:
        _write(to_csv(source.program()), output)
    elif chosen is Format.LOWERED_CSV:
        _write(plan_to_csv(source.plan()), output)
    elif chosen is Format.GRID:
        prediction = _prediction(simulate(source.plan(), known_costs), bounds)
        if output is None and sys.stdout.isatty():
            _show(source.program())
            _write(f"{prediction}\n", None)
        else:
            _write(f"{grid(source.program(), width=None)}\n{prediction}\n", output)
    elif chosen is Format.SVG:
        trace = simulate(source.plan(), known_costs).trace
        _write(timeline_svg([(trace.plan.name, trace)], costs=known_costs), output)
    elif output is None:
        _write(dumps(source.plan()), None)
    else:
        source.plan().save(output)


def _format_of(output: pathlib.Path | None) -> Format:
    suffix = output.suffix[1:] if output else ""
    return Format(suffix) if suffix in ("csv", "json", "svg") else Format.GRID


def _prediction(report: Report, bounds: list[float]) -> str:
    text = (
        f"predicted: makespan {report.makespan:g}, bubble {report.bubble_rate:.1%} (over the longest rank's span "
        f"{report.bubble_rate_span:.1%}), peak activation {max(report.peak_activation):g}"
    )
    for bound in bounds:
        gap = max(0.0, 1 - bound / report.longest_rank_span)
        text += f"\nproven: no schedule of this placement has its longest rank span below {bound:.6g}; gap {gap:.2%}"
    return text


def _show(program: Program) -> None:
    """Draw the grid on the terminal, as much of it as is wide enough."""
    from rich.console import Console

    from pipert.cli.colored_grid import colored

    console = Console(highlight=False)
    console.print(colored(grid(program, width=console.width), program), end="", soft_wrap=True)


def _write(text: str, output: pathlib.Path | None) -> None:
    if output is None:
        sys.stdout.write(text)
    else:
        inputs.write(output, text)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(plan)
