"""``pipert check``: judge a schedule or a plan file."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from pipert.cli import inputs
from pipert.cli.searching import TimeLimit, searching
from pipert.errors import PipertError


def check(
    target: inputs.Target,
    ranks: inputs.Ranks = None,
    microbatches: inputs.Microbatches = None,
    chunks: inputs.Chunks = None,
    costs: inputs.CostsText = None,
    costs_file: inputs.CostsFile = None,
    memory_limit: inputs.MemoryLimit = None,
    time_limit: TimeLimit = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdict as JSON.")] = False,
) -> None:
    """Check a schedule or a plan file: that its ops are complete, keep the memory limit, and cannot deadlock.

    Prints one line and exits with 0, or prints the first fault (for a deadlock, the ops that wait for each other)
    and exits with 1.
    """
    from pipert import sources

    try:
        with searching(time_limit, seed=0) as effort:
            source = sources.load(
                target,
                ranks=ranks,
                microbatches=microbatches,
                chunks=chunks,
                costs=inputs.load_costs(costs, costs_file),
                memory_limit=memory_limit,
                effort=effort,
            )
        plan = source.plan()
    except PipertError as error:
        if not as_json:
            raise
        typer.echo(json.dumps({"ok": False, "error": str(error), "rank": error.rank, "op": error.op}))
        raise typer.Exit(1) from None
    sizes = {
        "name": plan.name,
        "num_ranks": plan.num_ranks,
        "num_stages": plan.num_stages,
        "num_microbatches": plan.num_microbatches,
        "num_ops": plan.num_ops,
    }
    if as_json:
        typer.echo(json.dumps({"ok": True, **sizes}))
        return
    typer.echo(
        f"{target}: {plan.name} is complete and cannot deadlock: {plan.num_ranks} ranks, {plan.num_stages} stages, "
        f"{plan.num_microbatches} microbatches, {plan.num_ops} ops"
    )


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(check)
