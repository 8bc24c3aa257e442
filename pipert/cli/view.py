"""``pipert view``: a timeline page of plans and traces."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipert.cli import inputs
from pipert.cli.searching import TimeLimit, searching
from pipert.errors import ConfigError

if TYPE_CHECKING:
    from pipert.sources import Source
    from pipert.trace import Trace


def view(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME|FILE|TRACE…", help=f"{inputs.TARGET_HELP} Or a trace, as `pipert train` writes it."
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The page (.html) or picture (.svg) to write.")],
    ranks: inputs.Ranks = None,
    microbatches: inputs.Microbatches = None,
    chunks: inputs.Chunks = None,
    costs: inputs.CostsText = None,
    costs_file: inputs.CostsFile = None,
    costs_from: inputs.CostsFrom = None,
    memory_limit: inputs.MemoryLimit = None,
    time_limit: TimeLimit = None,
    host_cores: inputs.HostCores = None,
    vocab_parallel: inputs.VocabParallel = inputs.VocabAlgorithm.OFF,
) -> None:
    """Write one self-contained page that shows plans and traces on a common time axis, op by op.

    Plans are run on the virtual clock first. Two inputs, e.g. a plan and its trace, are shown over each other. Of a
    trace that is not alone, the measured step is taken, and plans beside it cost what was measured if no costs are
    given. An output that ends in .svg gets a still picture of any number of inputs, one above the other.

    pipert view zb-v --ranks 4 --microbatches 8 -o timeline.html

    pipert view runs/latest/plan.json runs/latest/trace.json -o timeline.html

    pipert view 1f1b zb-h1 zb-v --ranks 4 --microbatches 8 -o timeline.svg
    """
    from pipert import sources
    from pipert.sim import simulate
    from pipert.trace import is_trace_file, read_chrome
    from pipert.view import timeline_svg, write_timeline

    still = output.suffix == ".svg"
    if len(targets) > 2 and not still:
        raise ConfigError(f"at most two plans or traces are shown over each other, not {len(targets)}")
    steps = [Path(target) for target in targets if is_trace_file(target)] if len(targets) > 1 else []
    if steps and costs is None and costs_file is None and costs_from is None:
        costs_from = steps[0]
    known_costs = inputs.load_costs(costs, costs_file, host_cores, costs_from)
    load: Callable[..., Source] = functools.partial(sources.load, costs=known_costs, memory_limit=memory_limit)
    sizes = {"ranks": ranks, "microbatches": microbatches, "chunks": chunks}
    some_are_sized = any(map(sources.takes_sizes, targets))
    traces: list[tuple[str, Trace]] = []
    for target in targets:
        if is_trace_file(target):
            found = read_chrome(target)
            traces += found if len(targets) == 1 else _measured(found)
            continue
        given = {} if some_are_sized and not sources.takes_sizes(target) else sizes
        with searching(time_limit, seed=0) as effort:
            source = load(target, **given, effort=effort)
        if sources.takes_sizes(target):
            source = inputs.split_vocabulary(source, vocab_parallel, known_costs, memory_limit)
        traces.append(("planned", simulate(source.plan(), known_costs).trace))
    if still:
        inputs.write(output, timeline_svg(_titled(traces), costs=known_costs))
    else:
        write_timeline(output, _distinct(traces, targets) if len(targets) > 1 else traces, costs=known_costs)
    typer.echo(f"wrote {output}")


def _measured(steps: list[tuple[str, Trace]]) -> list[tuple[str, Trace]]:
    """Choose the measured step of a file, or its first if none was measured."""
    return [step for step in steps if step[1].unit == "ns"][:1] or steps[:1]


def _distinct(traces: list[tuple[str, Trace]], targets: list[str]) -> list[tuple[str, Trace]]:
    """Name traces after what they come from where their labels are the same."""
    labels = [label for label, _ in traces]
    if len(set(labels)) == len(labels) or len(traces) != len(targets):
        return traces
    return [(Path(target).stem, trace) for target, (_, trace) in zip(targets, traces, strict=True)]


def _titled(traces: list[tuple[str, Trace]]) -> list[tuple[str, Trace]]:
    """Give traces the names of their plans for titles, and their labels too where one plan comes twice."""
    names = [trace.plan.name for _, trace in traces]
    return [
        (name if names.count(name) == 1 else f"{name}, {traces[i][0]}", traces[i][1]) for i, name in enumerate(names)
    ]


def register(app: typer.Typer) -> None:
    """Add ``view`` to the command line."""
    app.command()(view)
