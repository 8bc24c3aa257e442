"""The arguments that several commands take, said once: what names a schedule, and what it costs."""

from __future__ import annotations

import dataclasses
import enum
import pathlib
from typing import TYPE_CHECKING, Annotated

import typer

from pipert.errors import ConfigError

if TYPE_CHECKING:
    from pipert.costs import Costs
    from pipert.sources import Source


class VocabAlgorithm(str, enum.Enum):
    """How the vocabulary is split over the ranks, if at all."""

    OFF = "off"
    ONE = "1"
    TWO = "2"

    @property
    def number(self) -> int | None:
        """The algorithm's number; None where the vocabulary is not split."""
        return None if self is VocabAlgorithm.OFF else int(self.value)


TARGET_HELP = (
    "A schedule's name (see `pipert schedules`), a Python file with a function that makes one (my.py, my.py:function), "
    "a schedule as PyTorch's CSV, or a plan file."
)
COSTS_HELP = (
    "Costs of a rank's whole share of one microbatch, e.g. F=1,I=1,W=1,p2p=0. Times, in one unit of your choice: F, I, "
    "W; B where it is not I + W, R where it is not F (or F and B alone: I and W are its halves). Transfers: p2p "
    "(latency), bandwidth, message_bytes. Memory: act (held from F to I), act_w (the part held on to W), act_kept (on "
    "to the end). overlap (what an F_B pair takes of its sum), rank_speed=1:1:0.5:1, microbatch_scale=1:1.2:… "
    "With --vocab-parallel: S and T (of any one rank), and maybe embed, embed_w, vembed, vbcast, vstats, vgrad, "
    "vembed_grad (meetings of all ranks) and act_s (memory held from S to T)."
)

Target = Annotated[str, typer.Argument(metavar="NAME|FILE", help=TARGET_HELP)]
Ranks = Annotated[
    int | None, typer.Option("--ranks", help="p, the number of pipeline ranks (with a schedule's name or Python file).")
]
Microbatches = Annotated[
    int | None,
    typer.Option("--microbatches", help="m, the number of microbatches in a step (with a name or Python file)."),
]
Chunks = Annotated[int | None, typer.Option("--chunks", help="Stages per rank, where the schedule leaves a choice.")]
CostsText = Annotated[str | None, typer.Option("--costs", metavar="NAME=NUMBER,…", help=COSTS_HELP)]
CostsFile = Annotated[
    pathlib.Path | None,
    typer.Option(
        "--costs-file",
        metavar="FILE",
        help="The same as a TOML file. Where stages differ, it has a table of the array `stage` for each; where links "
        "do, of the array `link`, with src, dst, latency, bandwidth.",
    ),
]
CostsFrom = Annotated[
    pathlib.Path | None,
    typer.Option(
        "--costs-from",
        metavar="TRACE",
        help="Costs as measured (ms): medians of the step in a trace file such as runs/latest/trace.json.",
    ),
]
MemoryLimit = Annotated[
    float | None,
    typer.Option("--memory-limit", help="The most activation that a rank may hold, in the unit of act."),
]
PostValidation = Annotated[
    bool,
    typer.Option(
        "--post-validation",
        help="Step the optimizer in the plan, without waiting for all ranks, and validate that step in the next one. "
        "Costs: opt, validate.",
    ),
]
VocabParallel = Annotated[
    VocabAlgorithm,
    typer.Option(
        "--vocab-parallel",
        help="Split the output layer and the input embedding over all ranks, by Algorithm 1 or 2 of arXiv 2411.05288: "
        "every rank gets S (its shard's logits) and T (their gradients) for each microbatch. In 2, all ranks wait for "
        "each other once less, S is longer and T may wait: the last stage's backward starts up to 1 microbatch later "
        "than without (in 1: up to 2), and as many more are held. F, I and W are then those without the two layers.",
    ),
]
HostCores = Annotated[
    float | None,
    typer.Option("--host-cores", help="Cores that all ranks share; a core for each rank if not given."),
]


def load_costs(
    costs: str | None,
    costs_file: pathlib.Path | None,
    host_cores: float | None = None,
    costs_from: pathlib.Path | None = None,
) -> Costs:
    """Read the costs that a command was given; by default 1 for each of F, I and W.

    Raises:
        ConfigError: more than one source is given, or one of them is wrong.
    """
    from pipert.costs import Costs

    options = {"--costs": costs, "--costs-file": costs_file, "--costs-from": costs_from}
    given = [option for option, value in options.items() if value is not None]
    if len(given) > 1:
        raise ConfigError(f"give {' or '.join(given)}, not {'both' if len(given) == 2 else 'all'}")
    if costs_from is not None:
        from pipert.trace import read_step

        result = Costs.from_trace(read_step(costs_from))
    else:
        result = Costs.load(costs_file) if costs_file is not None else Costs.parse(costs or "")
    return result if host_cores is None else dataclasses.replace(result, host_cores=host_cores)


def split_vocabulary(source: Source, algorithm: VocabAlgorithm, costs: Costs, memory_limit: float | None) -> Source:
    """Do what ``--vocab-parallel`` asks for, with a sign of life on a terminal: large programs take seconds.

    Raises:
        ConfigError: it cannot be done; see :func:`pipert.passes.vocab_parallel`.
    """
    from rich.console import Console

    if algorithm.number is None:
        return source
    with Console(stderr=True).status("placing the passes over the vocabulary"):
        return source.with_vocab_parallel(algorithm.number, costs, memory_limit)


def write(path: pathlib.Path, text: str) -> None:
    """Write a text file.

    Raises:
        ConfigError: that is not possible.
    """
    try:
        path.write_bytes(text.encode())
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
