"""Waiting for a schedule that is searched for: a bar with the best so far, and Ctrl-C takes it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from pipert.schedules.request import Effort

TimeLimit = Annotated[
    float | None,
    typer.Option(
        "--time-limit",
        metavar="SECONDS",
        help="How long to search (auto, optimal, zb-1p, zb-2p); without it, so long as it takes, and always with the "
        "same result. Ctrl-C takes the best so far.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="Of the search: the same seed finds the same schedule.")]


@contextmanager
def searching(time_limit_s: float | None, seed: int) -> Iterator[Effort]:
    """Show on stderr how a search goes, on a terminal; Ctrl-C during the search ends it, and it alone."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    interrupted = under_way = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        if not under_way or interrupted:
            raise KeyboardInterrupt
        interrupted = True

    def should_stop() -> bool:
        nonlocal under_way
        under_way = True
        return interrupted

    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("searching", total=1.0, visible=False)

        def progress(best: float, share: float) -> None:
            bar.update(task, completed=share, description=f"searching: best {best:.6g}", visible=True)

        former = signal.signal(signal.SIGINT, interrupt)
        try:
            yield Effort(seed, time_limit_s, progress, should_stop)
        finally:
            signal.signal(signal.SIGINT, former)
    if interrupted:
        console.print("interrupted: this is the best so far")
