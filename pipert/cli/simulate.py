"""``pipert simulate``: run a plan on a virtual clock and report makespan, bubble and peaks."""

from __future__ import annotations

import json

import typer

from pipert.cli import inputs


def simulate(
    target: str = typer.Argument(metavar="FILE|NAME", help="A plan file, a CSV schedule, or a schedule's name."),
    ranks: int | None = typer.Option(None, help=inputs.RANKS_HELP),
    microbatches: int | None = typer.Option(None, help=inputs.MICROBATCHES_HELP),
    chunks: int | None = typer.Option(None, help=inputs.CHUNKS_HELP),
    costs: str | None = typer.Option(None, help=inputs.COSTS_HELP),
    costs_file: str | None = typer.Option(None, metavar="FILE", help=inputs.COSTS_FILE_HELP),
    host_cores: float | None = typer.Option(None, help=inputs.HOST_CORES_HELP),
    as_json: bool = typer.Option(False, "--json", help="Print the report as JSON."),
) -> None:
    """Run a plan on a virtual clock: makespan, bubble, and per rank compute, exposed communication and peak activation.

    Example: pipert simulate zb-h1 --ranks 4 --microbatches 8 --costs F=1,I=1,W=0.8,p2p=0.05
    """
    import pipert

    known_costs = inputs.load_costs(costs, costs_file, host_cores)
    report = pipert.simulate(inputs.load_plan(target, ranks, microbatches, chunks), known_costs)
    typer.echo(json.dumps(report.to_dict(), indent=1) if as_json else str(report))


def register(app: typer.Typer) -> None:
    """Add ``simulate`` to the command line."""
    app.command()(simulate)
