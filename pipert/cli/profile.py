"""``pipert profile``: run a command, and say where the time of each rank went in some of its steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from pipert.errors import PipertError
from pipert.profile.request import Request, parse_steps


def profile(
    command: Annotated[
        list[str], typer.Argument(metavar="COMMAND", help="What to run: any program that steps a pipert.Engine.")
    ],
    steps: Annotated[
        str, typer.Option(metavar="A:B", help="Profile the steps from A to B - 1, those of them that are run.")
    ] = "2:12",
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FOLDER", help="Where the files go.")] = Path(
        "runs/profile"
    ),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the tables as JSON; what the command prints goes to standard error.")
    ] = False,
) -> None:
    """Run a command and print, per rank, compute, exposed transfers and idle time; the predicted figure beside each.

    Under nsys where that is on PATH and the command uses CUDA, else with the engines' own trace. The exit code is the
    command's.

    pipert profile -- pipert train --steps 5

    pipert profile --steps 10:20 -o runs/profile -- torchrun --nproc-per-node 4 train.py
    """
    from pipert.profile import session

    request = Request(out, parse_steps(steps))
    errors = Console(stderr=True, highlight=False)

    def note(text: str) -> None:
        errors.print(f"[yellow]profile:[/] {escape(text)}", soft_wrap=True)

    run = session.run(command, request, note, output_to_stderr=as_json)
    try:
        profiles = session.evaluate(run, request, note)
    except PipertError as error:
        if run.exit_code == 0:
            raise
        note(f"the command failed with exit code {run.exit_code}, and {error}")
        raise typer.Exit(run.exit_code) from None
    if as_json:
        typer.echo(json.dumps({"profiles": [each.to_dict() for each in profiles]}, indent=1))
    else:
        typer.echo("\n\n".join(map(str, profiles)))
    if run.exit_code != 0:
        raise typer.Exit(run.exit_code)


def register(app: typer.Typer) -> None:
    """Add ``profile`` to the command line; options after the command's first word are the command's."""
    app.command(context_settings={"allow_interspersed_args": False})(profile)
