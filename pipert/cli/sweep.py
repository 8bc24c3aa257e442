"""``pipert sweep``: a table of schedules and sizes, simulated at the same costs."""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from pipert.cli import inputs
from pipert.cli.searching import TimeLimit
from pipert.errors import ConfigError

if TYPE_CHECKING:
    from pipert.sweep import Row

T = TypeVar("T")


class Sort(str, enum.Enum):
    """What the rows are sorted by, ascending."""

    BUBBLE = "bubble"
    SPAN = "span"
    MAKESPAN = "makespan"
    PEAK = "peak"


_SORT_FIELD = {
    Sort.BUBBLE: "bubble_rate",
    Sort.SPAN: "bubble_rate_span",
    Sort.MAKESPAN: "makespan",
    Sort.PEAK: "peak_activation",
}


class Format(str, enum.Enum):
    """How the table is written to the terminal."""

    TABLE = "table"
    MARKDOWN = "markdown"
    CSV = "csv"
    JSON = "json"


def sweep(
    schedules: Annotated[
        str,
        typer.Option(
            metavar="NAME,…", help="Schedules by name, or files (my.py, my.csv, plan.json); all: every one by name."
        ),
    ] = "all",
    ranks: Annotated[str | None, typer.Option(metavar="P,…", help="Numbers of pipeline ranks.")] = None,
    microbatches: Annotated[str | None, typer.Option(metavar="M,…", help="Numbers of microbatches in a step.")] = None,
    chunks: Annotated[
        str | None, typer.Option(metavar="V,…", help="Numbers of stages per rank; by default each schedule's own.")
    ] = None,
    memory_limits: Annotated[
        str | None,
        typer.Option(
            metavar="X,…", help="The most activation that a rank may hold, in the unit of act; none: no limit."
        ),
    ] = None,
    costs: inputs.CostsText = None,
    costs_file: inputs.CostsFile = None,
    costs_from: inputs.CostsFrom = None,
    host_cores: inputs.HostCores = None,
    vocab_parallel: inputs.VocabParallel = inputs.VocabAlgorithm.OFF,
    time_limit: TimeLimit = None,
    sort: Annotated[Sort, typer.Option(help="Sort by this, ascending; what is refused comes last.")] = Sort.BUBBLE,
    format: Annotated[Format, typer.Option(help="How to print the table.")] = Format.TABLE,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Also write the rows to a CSV file.")
    ] = None,
) -> None:
    """Simulate every combination of schedules, ranks, microbatches, chunks and memory limits at the same costs.

    The lower bound is what no schedule with the same stages on the same ranks goes below. Combinations that a schedule
    refuses are listed with its reason.

    pipert sweep --ranks 8 --microbatches 16,32

    pipert sweep --schedules 1f1b,interleaved,zb-v --ranks 8 --microbatches 32 --chunks 1,2,4 --memory-limits none,8,4 \
    --costs F=18.5,I=18.1,W=9.3,p2p=0.6 --csv sweep.csv
    """
    from pipert import schedules as known
    from pipert import sweep as sweeping
    from pipert.cli.progress import progress_bar
    from pipert.schedules import Effort

    names = known.names() if schedules == "all" else _items("--schedules", schedules, str)
    all_cases = sweeping.cases(
        names,
        [None] if ranks is None else _items("--ranks", ranks, int),
        [None] if microbatches is None else _items("--microbatches", microbatches, int),
        [None] if chunks is None else _items("--chunks", chunks, int),
        [None] if memory_limits is None else _items("--memory-limits", memory_limits, _limit),
    )
    known_costs = inputs.load_costs(costs, costs_file, host_cores, costs_from)
    rows: list[Row] = []
    stopped = False
    with progress_bar("simulating", len(all_cases)) as advance:
        try:
            effort = Effort(time_limit_s=time_limit)
            for row in sweeping.sweep(all_cases, known_costs, effort, vocab_parallel.number):
                rows.append(row)
                advance(1)
        except KeyboardInterrupt:
            stopped = True
    rows.sort(key=lambda row: (bool(row.refused), getattr(row, _SORT_FIELD[sort]) or 0.0))
    _print(rows, Format.JSON if as_json else format)
    if csv is not None:
        _write(csv, sweeping.to_csv(rows))
    if stopped:
        typer.echo(f"interrupted: {len(rows)} of {len(all_cases)} combinations", err=True)
        raise typer.Exit(130)


def _limit(text: str) -> float | None:
    return None if text == "none" else float(text)


def _items(option: str, text: str, read: Callable[[str], T]) -> list[T]:
    try:
        items = [read(item.strip()) for item in text.split(",") if item.strip()]
    except ValueError:
        raise ConfigError(f"{option}: {text!r} is not a list of numbers like 8,16") from None
    if not items:
        raise ConfigError(f"{option} is empty")
    return items


def _print(rows: list[Row], format: Format) -> None:
    from pipert import sweep as sweeping

    if format is Format.JSON:
        typer.echo(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
    elif format is Format.CSV:
        typer.echo(sweeping.to_csv(rows), nl=False)
    elif format is Format.MARKDOWN:
        typer.echo(sweeping.to_markdown(rows), nl=False)
    else:
        _print_table(rows)


def _print_table(rows: list[Row]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from pipert import sweep as sweeping

    table = Table(box=None, pad_edge=False)
    for index, head in enumerate(sweeping.HEADS):
        table.add_column(head, justify="right" if index else "left", no_wrap=index == 0)
    for row in rows:
        if not row.refused:
            table.add_row(*map(escape, sweeping.cells(row)))
    console = Console(highlight=False)
    console.print(table)
    refused = [row for row in rows if row.refused]
    if refused:
        console.print(f"\nrefused ({len(refused)}):")
    for row in refused:
        sizes = {"p": row.ranks, "m": row.microbatches, "v": row.chunks, "limit": row.memory_limit}
        case = " ".join(f"{name}={value:g}" for name, value in sizes.items() if value is not None)
        console.print(f"  {escape(row.schedule)} {case}: {escape(row.refused)}", soft_wrap=True)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error


def register(app: typer.Typer) -> None:
    """Add ``sweep`` to the command line."""
    app.command()(sweep)
