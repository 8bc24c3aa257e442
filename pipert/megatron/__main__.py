"""``python -m pipert.megatron [--pipert-…] script.py …``: run a Megatron-style script with pipert's engine.

Under torchrun: ``torchrun --nproc-per-node 4 -m pipert.megatron --pipert-schedule zb-1p pretrain.py …``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipert.cli import report_errors
from pipert.megatron.script import check_script, run_script

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"allow_interspersed_args": False, "help_option_names": ["-h", "--help"]},
)


@app.command()
def run(
    script: Annotated[list[str], typer.Argument(metavar="SCRIPT ARGUMENTS", help="The script, and its own arguments.")],
    schedule: Annotated[
        str | None,
        typer.Option(
            "--pipert-schedule",
            metavar="NAME|FILE",
            help="A schedule ('pipert schedules' lists them), or a plan, CSV or Python file. By default the order that "
            "Megatron itself has.",
        ),
    ] = None,
    costs: Annotated[
        str | None,
        typer.Option(
            "--pipert-costs",
            metavar="F=…,I=…,W=…|FILE.toml",
            help="What ops cost, for schedules that are made from costs.",
        ),
    ] = None,
    memory_limit: Annotated[
        float | None,
        typer.Option("--pipert-memory-limit", help="The most activation that a rank may hold, in the costs' unit."),
    ] = None,
    runs: Annotated[
        Path, typer.Option("--pipert-runs", metavar="FOLDER", help="Where the run leaves plan, trace and timeline.")
    ] = Path("runs"),
    timeout_ms: Annotated[
        int, typer.Option("--pipert-timeout-ms", help="The longest wait for another rank.")
    ] = 600_000,
    vocab_parallel: Annotated[
        str,
        typer.Option(
            "--pipert-vocab-parallel",
            metavar="off|2",
            help="2 splits the output layer over all ranks of the pipeline, by the vocabulary (Algorithm 2).",
        ),
    ] = "off",
) -> None:
    """Run SCRIPT with pipert's schedules in the place of Megatron's; nothing in it changes."""
    from pipert.megatron.install import finish, install

    check_script(script)
    install(
        schedule,
        costs=costs,
        memory_limit=memory_limit,
        runs=runs,
        timeout_ms=timeout_ms,
        vocab_parallel=vocab_parallel,
    )
    run_script(script)
    finish()


if __name__ == "__main__":
    report_errors(app)
