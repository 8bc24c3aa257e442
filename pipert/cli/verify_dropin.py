"""``pipert verify-dropin``: say whether a Megatron-style script computes the same with pipert's schedule."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from pipert.megatron.verify import Comparison

_MIB = 2**20


def verify_dropin(
    script: Annotated[list[str], typer.Argument(metavar="SCRIPT ARGUMENTS", help="The script, and its own arguments.")],
    schedule: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="pipert's schedule; by default the order of Megatron's own.")
    ] = None,
    costs: Annotated[
        str | None, typer.Option(metavar="F=…,I=…,W=…|FILE.toml", help="What ops cost, for schedules made from costs.")
    ] = None,
    memory_limit: Annotated[
        float | None, typer.Option(help="The most activation that a rank may hold, in the costs' unit.")
    ] = None,
    nproc_per_node: Annotated[int, typer.Option(min=1, help="Processes to start on this machine, as torchrun's.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Training steps to compare.")] = 3,
    timeout_ms: Annotated[int, typer.Option(help="The longest wait for another rank.")] = 600_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
) -> None:
    """Run a script's first steps twice, by Megatron's own schedule and by pipert's, and compare them bit by bit.

    Losses and gradients (reduced, before the optimizer) must have the same bits. Gradients are kept in a folder for
    temporary files between the two runs. Exit code 1 if anything differs that should not.

    pipert verify-dropin --nproc-per-node 4 --schedule zb-1p -- pretrain_gpt.py --pipeline-model-parallel-size 4
    """
    from pipert.megatron.options import Options
    from pipert.megatron.verify import verify

    options = Options(schedule, costs, memory_limit, None, timeout_ms)
    comparison = verify(script, options, num_ranks=nproc_per_node, num_steps=steps)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(comparison), indent=1))
    else:
        _print(comparison)
    raise typer.Exit(0 if comparison.passes else 1)


def _print(comparison: Comparison) -> None:
    console = Console(highlight=False)
    table = Table()
    for title in ("schedule", "step", "peak memory"):
        table.add_column(title, justify="left" if title == "schedule" else "right")
    for name, run in (("Megatron's own", comparison.megatron), ("pipert's", comparison.pipert)):
        table.add_row(name, f"{run.step_time_ms:.1f} ms", f"{run.peak_memory_bytes / _MIB:.0f} MiB")
    console.print(table)
    if comparison.copied_parameters:
        console.print(
            f"{comparison.copied_parameters} parameters lie on other ranks, where the script initialises them "
            "otherwise; they were copied from the first run"
        )
    for step, (losses, gradients) in enumerate(
        zip(comparison.differing_losses, comparison.differing_gradients, strict=True)
    ):
        for name, difference in sorted(gradients.items(), key=lambda item: -item[1])[:5]:
            console.print(f"step {step}: {name} differs by {difference:.2g} of its norm", soft_wrap=True)
        if losses or gradients:
            console.print(f"step {step}: {losses} losses and {len(gradients)} gradients differ")
    console.print(_verdict(comparison), soft_wrap=True)


def _verdict(comparison: Comparison) -> str:
    compared = f"{comparison.num_losses} losses and {comparison.num_gradients} gradients"
    if comparison.equal:
        return f"{compared} have the same bits"
    if comparison.passes:
        return (
            f"of {compared}, those of the first step have the same bits; later ones differ by rounding (at most "
            f"{comparison.worst:.2g}), by design: on another placement, the squares behind the gradient norm are "
            "summed in another order, and clipping passes that on"
        )
    return (
        f"of {compared}, some differ that should not; dropout draws other numbers where forwards run in another order"
    )


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("verify-dropin", context_settings={"allow_interspersed_args": False})(verify_dropin)
