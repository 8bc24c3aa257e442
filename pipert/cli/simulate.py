"""``pipert simulate``: run a plan on a virtual clock and report makespan, bubble and peaks."""

from __future__ import annotations

import json

import typer

from pipert.cli import inputs


def simulate(
    target: inputs.Target,
    ranks: inputs.Ranks = None,
    microbatches: inputs.Microbatches = None,
    chunks: inputs.Chunks = None,
    costs: inputs.CostsText = None,
    costs_file: inputs.CostsFile = None,
    memory_limit: inputs.MemoryLimit = None,
    host_cores: inputs.HostCores = None,
    as_json: bool = typer.Option(False, "--json", help="Print the report as JSON."),
) -> None:
    """Run a plan on a virtual clock: makespan, bubble, and per rank compute, exposed communication and peak activation.

    Example: pipert simulate zb-h1 --ranks 4 --microbatches 8 --costs F=1,I=1,W=0.8,p2p=0.05
    """
    from pipert import sources
    from pipert.sim import simulate

    known_costs = inputs.load_costs(costs, costs_file, host_cores)
    source = sources.load(
        target, ranks=ranks, microbatches=microbatches, chunks=chunks, costs=known_costs, memory_limit=memory_limit
    )
    report = simulate(source.plan(), known_costs)
    typer.echo(json.dumps(report.to_dict(), indent=1) if as_json else str(report))


def register(app: typer.Typer) -> None:
    """Add ``simulate`` to the command line."""
    app.command()(simulate)
