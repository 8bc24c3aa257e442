"""Many schedules and sizes, simulated at the same costs."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields

from pipert import sources
from pipert.costs import Costs
from pipert.errors import PipertError
from pipert.schedules import Effort
from pipert.sim import simulate
from pipert.solve.bound import lower_bound


@dataclass(frozen=True, slots=True)
class Case:
    """What one row of a sweep is made for; None where it does not apply, or the schedule decides.

    Attributes:
        schedule: whatever `pipert.sources.load` takes.
        ranks: p.
        microbatches: m.
        chunks: stages per rank.
        memory_limit: the most activation that a rank may hold.
    """

    schedule: str
    ranks: int | None = None
    microbatches: int | None = None
    chunks: int | None = None
    memory_limit: float | None = None


@dataclass(frozen=True, slots=True)
class Row(Case):
    """One row of a sweep: the case, and the figures of `pipert.Report`, or why there are none.

    Attributes:
        bubble_rate: over the makespan.
        bubble_rate_span: over the longest rank's span.
        makespan: of one step.
        peak_activation: of the fullest rank.
        lower_bound: of the makespan of any schedule with the same stages on the same ranks, and within the limit.
        refused: why there is no such schedule; empty if there is.
    """

    bubble_rate: float | None = None
    bubble_rate_span: float | None = None
    makespan: float | None = None
    peak_activation: float | None = None
    lower_bound: float | None = None
    refused: str = ""


COLUMNS = tuple(field.name for field in fields(Row))


def cases(
    schedules: Sequence[str],
    ranks: Sequence[int | None] = (None,),
    microbatches: Sequence[int | None] = (None,),
    chunks: Sequence[int | None] = (None,),
    memory_limits: Sequence[float | None] = (None,),
) -> list[Case]:
    """Combine everything with everything. A file with a schedule has its own sizes, and is taken once per limit."""
    made = []
    for schedule in schedules:
        sized = sources.takes_sizes(schedule)
        sizes = itertools.product(ranks, microbatches, chunks) if sized else [(None, None, None)]
        made += [Case(schedule, p, m, v, limit) for p, m, v in sizes for limit in memory_limits]
    return made


def sweep(
    cases: Iterable[Case], costs: Costs, effort: Effort | None = None, vocab_parallel: int | None = None
) -> Iterator[Row]:
    """Simulate case by case. What a schedule refuses becomes a row with the reason.

    Args:
        cases: what the rows are made for.
        costs: what ops cost in all of them.
        effort: how each schedule that is searched for is searched for.
        vocab_parallel: the algorithm by which the vocabulary is split over the ranks in all of them, if it is.
    """
    for case in cases:
        try:
            source = sources.load(
                case.schedule,
                ranks=case.ranks,
                microbatches=case.microbatches,
                chunks=case.chunks,
                costs=costs,
                memory_limit=case.memory_limit,
                effort=effort,
            )
            if vocab_parallel is not None:
                source = source.with_vocab_parallel(vocab_parallel, costs, case.memory_limit)
            plan = source.plan()
            report = simulate(plan, costs)
            bound = lower_bound(plan, costs, case.memory_limit)
        except PipertError as error:
            yield Row(**asdict(case), refused=str(error).splitlines()[0])
            continue
        yield Row(
            schedule=case.schedule,
            ranks=plan.num_ranks,
            microbatches=plan.num_microbatches,
            chunks=plan.num_stages * len(plan.paths) // plan.num_ranks if case.chunks is None else case.chunks,
            memory_limit=case.memory_limit,
            bubble_rate=report.bubble_rate,
            bubble_rate_span=report.bubble_rate_span,
            makespan=report.makespan,
            peak_activation=max(report.peak_activation),
            lower_bound=bound.makespan,
        )


def to_csv(rows: Iterable[Row]) -> str:
    """Write rows as CSV with a header; empty cells where there is nothing."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow("" if value is None else value for value in asdict(row).values())
    return text.getvalue()


def to_markdown(rows: Iterable[Row]) -> str:
    """Write rows as a Markdown table, with what was refused named in its row."""
    lines = ["| " + " | ".join(HEADS) + " |", "|" + "---|" * len(HEADS)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells(row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


HEADS = ("schedule", "p", "m", "v", "limit", "bubble", "over the span", "makespan", "lower bound", "peak")


def cells(row: Row) -> tuple[str, ...]:
    """Give what a table shows of a row, under `HEADS`."""
    case = (row.ranks, row.microbatches, row.chunks, row.memory_limit)
    head = (row.schedule, *("" if value is None else f"{value:g}" for value in case))
    if row.refused:
        return (*head, f"refused: {row.refused}", "", "", "", "")
    rates = (f"{rate:.2%}" for rate in (row.bubble_rate, row.bubble_rate_span) if rate is not None)
    sizes = (row.makespan, row.lower_bound, row.peak_activation)
    return (*head, *rates, *("" if value is None else f"{value:.6g}" for value in sizes))
