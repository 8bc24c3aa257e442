"""``pipert tune``: choose partition, placement and schedule together, from a profile of the model's layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipert.cli import inputs
from pipert.cli.searching import Seed, TimeLimit, searching
from pipert.errors import ConfigError

if TYPE_CHECKING:
    from pipert.tune import Layer, Tuned
    from pipert.tune.machine import Machine
    from pipert.tune.megatron import Baseline


def tune(
    profile: Annotated[
        Path,
        typer.Argument(
            metavar="PROFILE.csv",
            help="A row for each layer: name,F,I,W (ms) and maybe act,act_w,bytes_out (bytes). `pipert train "
            "--profile-layers FILE` writes one.",
        ),
    ],
    ranks: Annotated[int, typer.Option(help="p, the number of pipeline ranks.")],
    microbatches: Annotated[int, typer.Option(help="m, the number of microbatches in a step.")],
    memory_limit: Annotated[
        float | None, typer.Option(help="The most bytes of activation that a rank may hold, as in the profile's act.")
    ] = None,
    rank_speed: Annotated[
        str | None, typer.Option(metavar="1,1,0.5,…", help="How fast each rank is; the profile is for speed 1.")
    ] = None,
    p2p: Annotated[float, typer.Option(help="Latency of a transfer, in ms.")] = 0.0,
    links: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml",
            help="Speeds of the links, as in a costs file: p2p (ms), bandwidth (bytes per ms) and message_bytes (for a "
            "profile without bytes_out); a table of the array `link` for each that differs, with src, dst, latency, "
            "bandwidth.",
        ),
    ] = None,
    replicas: Annotated[
        bool,
        typer.Option(
            "--replicas/--one-copy",
            help="Whether a stage, and with it its parameters, may stand on two ranks (bidirectional schedules).",
        ),
    ] = True,
    vocab_parallel: Annotated[
        inputs.VocabAlgorithm,
        typer.Option(
            help="Split the profile's first and last layers, the input embedding and the output layer, over all ranks, "
            "by Algorithm 1 or 2 of arXiv 2411.05288; partition and placement are then those of the layers in between.",
        ),
    ] = inputs.VocabAlgorithm.OFF,
    time_limit: TimeLimit = None,
    seed: Seed = 0,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The plan file; its costs go to the same name with .toml.")
    ] = Path("tuned.json"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Choose partition, placement and schedule together, from a profile of the model's layers.

    Ctrl-C ends the search; the best so far is the answer.

    \b
    pipert train --profile-layers layers.csv
    pipert tune layers.csv --ranks 4 --microbatches 8 -o tuned.json
    pipert simulate tuned.json --costs-file tuned.toml
    pipert train --plan tuned.json --timed tuned.toml
    """  # noqa: D301
    from pipert.tune import load_profile
    from pipert.tune import tune as find
    from pipert.tune.megatron import megatron

    layers = load_profile(profile)
    if memory_limit is not None and not any(layer.act for layer in layers):
        raise ConfigError(f"--memory-limit needs the column act, which the profile {str(profile)!r} lacks")
    machine = _machine(ranks, rank_speed, p2p, links, memory_limit)
    for what, number in (("ranks", ranks), ("microbatches", microbatches)):
        if number < 1:
            raise ConfigError(f"--{what} must be at least 1, not {number}")
    with searching(time_limit, seed) as effort:
        tuned = find(
            layers,
            machine,
            microbatches,
            replicas=replicas,
            vocab_parallel=vocab_parallel.number,
            seed=effort.seed,
            time_limit_s=effort.time_limit_s,
            progress=effort.progress,
            should_stop=effort.should_stop,
        )
    costs_file = output.with_suffix(".toml")
    tuned.plan().save(output)
    tuned.costs.save(costs_file)
    baseline = megatron(layers, machine, microbatches)
    if vocab_parallel.number:
        layers = layers[1:-1]
    if as_json:
        typer.echo(json.dumps(_to_dict(tuned, layers, baseline), indent=1))
    else:
        typer.echo(_to_text(tuned, layers, machine, baseline))
        typer.echo(f"\nwrote {output} and {costs_file}")


def _machine(ranks: int, rank_speed: str | None, p2p: float, links: Path | None, memory_limit: float | None) -> Machine:
    from pipert.costs import Costs
    from pipert.tune.machine import Machine

    if links is not None and p2p:
        raise ConfigError("give --p2p or --links, not both")
    known = Costs.per_rank(p2p=p2p) if links is None else Costs.load(links)
    speeds = known.rank_speed if rank_speed is None else _numbers(rank_speed)
    if speeds and len(speeds) != ranks:
        raise ConfigError(f"--rank-speed has {len(speeds)} numbers for {ranks} ranks")
    for source, destination in known.links:
        if max(source, destination) >= ranks:
            raise ConfigError(f"--links: there is no link from rank {source} to rank {destination} of {ranks} ranks")
    return Machine(ranks, speeds, known.p2p, known.bandwidth, known.message_bytes, known.links, memory_limit)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(map(float, text.split(",")))
    except ValueError:
        raise ConfigError(f"--rank-speed: {text!r} is not a list of numbers like 1,1,0.5,1") from None


def _to_dict(tuned: Tuned, layers: tuple[Layer, ...], baseline: Baseline) -> dict[str, object]:
    import dataclasses

    from pipert.tune.partition import slices

    return {
        "schedule": tuned.program.name,
        "paths": tuned.program.paths,
        "stages": [[layer.name for layer in layers[part]] for part in slices(tuned.cut)],
        "step_time": tuned.step_time,
        "lower_bound": tuned.bound,
        "megatron": dataclasses.asdict(baseline),
        "gain": 1 - tuned.step_time / baseline.step_time,
    }


def _to_text(tuned: Tuned, layers: tuple[Layer, ...], machine: Machine, baseline: Baseline) -> str:
    from pipert.trace.table import table
    from pipert.tune.partition import slices

    program = tuned.program
    rows = [("stage", "rank", "layers", "", "time")]
    for stage, part in enumerate(slices(tuned.cut)):
        held = layers[part]
        span = held[0].name if len(held) == 1 else f"{held[0].name} … {held[-1].name}"
        holders = program.holders(stage)
        times = " / ".join(f"{sum(layer.time for layer in held) / machine.speed(rank):.4g}" for rank in holders)
        rows.append((str(stage), ", ".join(map(str, holders)), span, str(len(held)), times))
    gain = baseline.step_time / tuned.step_time
    vocab = tuned.costs.vocab
    split = [f"vocabulary      split over all ranks, on each S {vocab.S:.4g} and T {vocab.T:.4g} ms"] if vocab else []
    notes = "" if baseline.fits else ", which exceeds the memory limit"
    copies = "; every stage stands on two ranks, and so do its parameters" if len(program.paths) > 1 else ""
    return "\n".join(
        [
            f"{program.name}: {program.num_ranks} ranks, {program.num_stages} stages, {program.num_microbatches} "
            f"microbatches{copies}",
            table(rows, left=(2,)),
            *split,
            "",
            f"predicted step  {tuned.step_time:.6g} ms (no schedule of these stages is below {tuned.bound:.6g})",
            f"Megatron        {baseline.step_time:.6g} ms ({baseline}, layers spread evenly{notes})",
            f"gain            {gain:.3f}x, {1 - 1 / gain:.1%} less time",
        ]
    )


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(tune)
