"""``pipert check FILE``: judge a plan file."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from pipert.errors import PipertError


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def check(
        file: Path = typer.Argument(help="A plan file, as `pipert plan ... -o plan.json` writes it."),
        as_json: bool = typer.Option(False, "--json", help="Print the verdict as JSON."),
    ) -> None:
        """Check a plan file: its format, its hash, and that its ops are complete and cannot deadlock.

        Prints one line and exits with 0, or prints the first fault (for a deadlock, the ops that wait for each other)
        and exits with 1.
        """
        from pipert.plan import Plan

        try:
            plan = Plan.load(file)
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
            f"{file}: {plan.name} is complete and cannot deadlock: {plan.num_ranks} ranks, {plan.num_stages} stages, "
            f"{plan.num_microbatches} microbatches, {plan.num_ops} ops"
        )
