"""The ``pipert`` command: one module per subcommand, each named after it.

A module defines ``register(app)``, and imports what is heavy (torch, the native core) inside its command.
"""

from __future__ import annotations

import importlib
import os
import sys

import typer
from rich.console import Console
from rich.markup import escape

from pipert.errors import PipertError
from pipert.version import __version__

COMMANDS: tuple[str, ...] = (
    "bench",
    "check",
    "doctor",
    "plan",
    "profile",
    "schedules",
    "simulate",
    "sweep",
    "train",
    "tune",
    "verify_dropin",
    "view",
)

app = typer.Typer(
    name="pipert",
    help="A pipeline-parallel runtime in which the schedule is data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit()


def main() -> None:
    """Run the command line."""
    for name in COMMANDS:
        importlib.import_module(f"pipert.cli.{name}").register(app)
    report_errors(app)


def report_errors(app: typer.Typer) -> None:
    """Run ``app`` and exit; a user's mistake is one line on stderr and exit code 1, never a stack trace."""
    status = _status(app)
    sys.stdout.flush()
    sys.stderr.flush()
    if "RANK" in os.environ:
        # A rank leaves at once: a thread of torch.distributed that lets go of its last tensor while the interpreter
        # goes away ends the process with std::terminate.
        os._exit(status)
    sys.exit(status)


def _status(app: typer.Typer) -> int:
    try:
        app()
    except SystemExit as done:  # how typer ends every command
        return done.code if isinstance(done.code, int) else 0 if done.code is None else 1
    except KeyboardInterrupt:
        return 130
    except PipertError as error:
        if os.environ.get("PIPERT_DEBUG"):
            raise
        Console(stderr=True, highlight=False).print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0
