"""``pipert simulate``: run a plan on a virtual clock, and say what the step amounts to and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipert.cli import inputs
from pipert.cli.searching import TimeLimit, searching
from pipert.errors import ConfigError

if TYPE_CHECKING:
    from pipert.costs import Costs
    from pipert.noise import Spread
    from pipert.plan import Plan
    from pipert.trace import Report


def simulate(
    target: Annotated[
        str, typer.Argument(metavar="NAME|FILE|TRACE", help=f"{inputs.TARGET_HELP} Or a trace: its measured step.")
    ],
    ranks: inputs.Ranks = None,
    microbatches: inputs.Microbatches = None,
    chunks: inputs.Chunks = None,
    costs: inputs.CostsText = None,
    costs_file: inputs.CostsFile = None,
    costs_from: inputs.CostsFrom = None,
    memory_limit: inputs.MemoryLimit = None,
    post_validation: inputs.PostValidation = False,
    vocab_parallel: inputs.VocabParallel = inputs.VocabAlgorithm.OFF,
    host_cores: inputs.HostCores = None,
    why: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Split each rank's idle time by its cause, and print the critical path with the slack beside it.",
        ),
    ] = False,
    noise: Annotated[
        str | None,
        typer.Option(
            metavar="cv=X,straggler=RANK:FACTOR",
            help="Simulate many steps in which op times vary (log-normal, mean 1, coefficient of variation cv) and "
            "stragglers take FACTOR times as long (RANK any: another rank in each step); print quantiles.",
        ),
    ] = None,
    samples: Annotated[int, typer.Option(help="How many noisy steps.")] = 200,
    time_limit: TimeLimit = None,
    seed: Annotated[int, typer.Option(help="Of the noise, and of a search: the same seed gives the same result.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Run a plan on a virtual clock: makespan, bubble, and per rank compute, exposed communication and peak activation.

    pipert simulate zb-h1 --ranks 4 --microbatches 8 --costs F=1,I=1,W=0.8,p2p=0.05

    pipert simulate 1f1b --ranks 4 --microbatches 8 --explain --noise cv=0.05,straggler=2:1.3

    pipert simulate zb-v --ranks 4 --microbatches 8 --costs-from runs/latest/trace.json

    pipert simulate zb-v --ranks 8 --microbatches 128 --vocab-parallel 1 --costs-file \
    profiles/vocab/256k-algorithm-1.toml

    pipert simulate runs/latest/trace.json --explain
    """
    from pipert.sim import simulate
    from pipert.trace import explain, is_trace_file

    spread = None
    if is_trace_file(target):
        sizes = {"--ranks": ranks, "--microbatches": microbatches, "--chunks": chunks, "--memory-limit": memory_limit}
        options = {"--noise": noise, "--host-cores": host_cores, "--costs-from": costs_from}
        _refuse(target, sizes | options | {"--vocab-parallel": vocab_parallel.number})
        report = _measured(target, costs, costs_file)
    else:
        from pipert import sources

        known_costs = inputs.load_costs(costs, costs_file, host_cores, costs_from)
        with searching(time_limit, seed) as effort:
            source = sources.load(
                target,
                ranks=ranks,
                microbatches=microbatches,
                chunks=chunks,
                costs=known_costs,
                memory_limit=memory_limit,
                effort=effort,
            )
        source = inputs.split_vocabulary(source, vocab_parallel, known_costs, memory_limit)
        plan = (source.with_post_validation() if post_validation else source).plan()
        report = simulate(plan, known_costs, memory_limit=memory_limit)
        if noise is not None:
            spread = _vary(plan, known_costs, noise, samples, seed)
    explanation = explain(report.trace) if why else None
    if as_json:
        figures = report.to_dict()
        figures |= {"noise": spread.to_dict()} if spread else {}
        figures |= {"explanation": explanation.to_dict()} if explanation else {}
        typer.echo(json.dumps(figures, indent=1))
    else:
        typer.echo("\n\n".join(str(part) for part in (report, spread, explanation) if part is not None))


def _refuse(target: str, options: dict[str, Any]) -> None:
    for option, value in options.items():
        if value is not None:
            raise ConfigError(f"{option} is for what is simulated; {target!r} holds a step as it was")


def _measured(path: str, costs: str | None, costs_file: Path | None) -> Report:
    from pipert.trace import measure, read_step

    given = costs is not None or costs_file is not None
    return measure(read_step(path), inputs.load_costs(costs, costs_file) if given else None)


def _vary(plan: Plan, costs: Costs, noise: str, samples: int, seed: int) -> Spread:
    from pipert.cli.progress import progress_bar
    from pipert.noise import Noise, simulate

    with progress_bar("noisy steps", samples) as advance:
        return simulate(plan, costs, Noise.parse(noise), num_steps=samples, seed=seed, progress=advance)


def register(app: typer.Typer) -> None:
    """Add ``simulate`` to the command line."""
    app.command()(simulate)
