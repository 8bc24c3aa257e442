"""``pipert view``: a timeline page of plans and traces."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipert.cli import inputs
from pipert.errors import ConfigError

if TYPE_CHECKING:
    from pipert.costs import Costs
    from pipert.trace import Trace


def view(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="PLAN|TRACE [PLAN|TRACE]", help="Plan files or trace files, at most two."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The page to write.")],
    costs: str | None = typer.Option(None, help="Times for plans. " + inputs.COSTS_HELP),
    costs_file: str | None = typer.Option(None, metavar="FILE", help=inputs.COSTS_FILE_HELP),
    host_cores: float | None = typer.Option(None, help=inputs.HOST_CORES_HELP),
) -> None:
    """Write one self-contained page that shows plans and traces on a common time axis, op by op.

    Plans are run on the virtual clock first. Two inputs, e.g. a plan and its trace, are shown over each other.
    """
    from pipert.view import write_timeline

    if len(sources) > 2:
        raise ConfigError(f"at most two plans or traces are shown over each other, not {len(sources)}")
    known_costs = inputs.load_costs(costs, costs_file, host_cores)
    traces = [labelled for source in sources for labelled in _traces(source, known_costs)]
    if len(sources) > 1:
        traces = _distinct(traces, sources)
    write_timeline(output, traces)
    typer.echo(f"wrote {output}")


def _traces(source: str, costs: Costs) -> list[tuple[str, Trace]]:
    import pipert
    from pipert.trace import read_chrome

    if inputs.is_trace_file(source):
        return read_chrome(source)
    return [("planned", pipert.simulate(pipert.Plan.load(source), costs).trace)]


def _distinct(traces: list[tuple[str, Trace]], sources: list[str]) -> list[tuple[str, Trace]]:
    """Name traces after their files where their labels are the same."""
    labels = [label for label, _ in traces]
    if len(set(labels)) == len(labels) or len(traces) != len(sources):
        return traces
    return [(Path(source).stem, trace) for source, (_, trace) in zip(sources, traces, strict=True)]


def register(app: typer.Typer) -> None:
    """Add ``view`` to the command line."""
    app.command()(view)
