"""``pipert train``: the main job."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from pipert.errors import ConfigError, PeerLost, PipertError, PlanError, StageError
from pipert.train.config import DEFAULT_LAYERS, ModelConfig, TrainConfig

_PIPELINE, _MODEL, _TRAINING = "Pipeline", "Model", "Training"
_INTERRUPTED = 130  # 128 + SIGINT
_MAKE_THE_PLAN = (
    "schedule", "ranks", "microbatches", "chunks", "costs", "costs_file", "memory_limit", "plan", "recompute",
    "post_validation", "vocab_parallel",
)  # fmt: skip
_CHECKS, _FILES = "Prediction and proof", "Files"


def _option(text: str, panel: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, **more)


def train(
    context: typer.Context,
    schedule: Annotated[
        str, _option("A schedule's name (see `pipert schedules`), or a file: my.py, my.csv.", _PIPELINE)
    ] = "zb-v",
    ranks: Annotated[int | None, _option("Processes, one per rank.", _PIPELINE, show_default="4")] = None,
    microbatches: Annotated[int | None, _option("Microbatches per step.", _PIPELINE, show_default="8")] = None,
    chunks: Annotated[int | None, _option("Stages per rank, where the schedule leaves it open.", _PIPELINE)] = None,
    costs: Annotated[
        str | None,
        _option(
            "What a schedule that is made from costs is made from.",
            _PIPELINE,
            metavar="F=…,I=…,W=…",
            show_default="those of --timed, else 1",
        ),
    ] = None,
    costs_file: Annotated[Path | None, _option("The same as a TOML file.", _PIPELINE)] = None,
    memory_limit: Annotated[
        float | None, _option("The most activation that a rank may hold, in the unit of the costs' act.", _PIPELINE)
    ] = None,
    plan: Annotated[Path | None, _option("Run this plan file instead of a schedule.", _PIPELINE)] = None,
    post_validation: Annotated[
        bool,
        _option(
            "Step the optimizer without waiting for all ranks; validate that step in the next one. Needs --untied.",
            _PIPELINE,
            "--post-validation",
        ),
    ] = False,
    vocab_parallel: Annotated[
        str,
        _option(
            "Split the embedding and the output layer over all ranks: off, 1 (less work in S) or 2 (one barrier less).",
            _PIPELINE,
            metavar="off|1|2",
        ),
    ] = "off",
    recompute: Annotated[
        bool, _option("Keep only stage inputs; run each forward again before its backward.", _PIPELINE, "--recompute")
    ] = False,
    batch_weight_grads: Annotated[
        bool,
        _option(
            "Compute W ops that follow each other as one product per weight (2BP); equal to rounding.",
            _PIPELINE,
            "--batch-weight-grads",
        ),
    ] = False,
    one_process: Annotated[
        bool, _option("Run all ranks in this one process, e.g. under a debugger.", _PIPELINE, "--one-process")
    ] = False,
    layers: Annotated[
        int | None,
        _option("Transformer layers, spread over the stages.", _MODEL, show_default="8, or one for each stage"),
    ] = None,
    dim: Annotated[int, _option("Width.", _MODEL)] = 128,
    heads: Annotated[int, _option("Attention heads.", _MODEL)] = 4,
    seq_len: Annotated[int, _option("Bytes per sequence.", _MODEL)] = 128,
    positions: Annotated[str, _option("rotary or learned.", _MODEL)] = "rotary",
    tied: Annotated[bool, _option("Share the embedding with the output layer.", _MODEL, "--tied/--untied")] = True,
    dtype: Annotated[str, _option("fp32, or bf16 with fp32 main gradients and master weights.", _MODEL)] = "fp32",
    device: Annotated[
        str, _option("cpu, or cuda: the ranks take the machine's GPUs in turns, several may share one.", _MODEL)
    ] = "cpu",
    steps: Annotated[int | None, _option("Steps in all.", _TRAINING, show_default="100; 10 with --timed")] = None,
    batch_size: Annotated[int, _option("Sequences per microbatch.", _TRAINING)] = 2,
    seed: Annotated[int, _option("Of the weights and the batches.", _TRAINING)] = 0,
    lr: Annotated[float, _option("Peak learning rate of AdamW.", _TRAINING)] = 3e-3,
    warmup: Annotated[int, _option("Steps to reach it; then a cosine down to a tenth.", _TRAINING)] = 10,
    clip: Annotated[float, _option("Largest global gradient norm.", _TRAINING)] = 1.0,
    verify: Annotated[
        bool,
        _option(
            "Train the same model in one process, too, and compare every loss and gradient bit by bit; with "
            "--vocab-parallel to rounding, each step from equal parameters.",
            _CHECKS,
            "--verify",
        ),
    ] = False,
    timed: Annotated[
        str | None,
        _option(
            "Stages that only take so many ms per rank and microbatch, or as long as a costs file says, and messages "
            "as late as their p2p and bandwidth make them: measured must be within 5% of predicted.",
            _CHECKS,
            metavar="F=…,I=…,W=…|FILE.toml",
        ),
    ] = None,
    data: Annotated[
        Path | None, _option("Text to learn: a file or a folder.", _FILES, show_default="Python's own library")
    ] = None,
    save: Annotated[Path | None, _option("Folder for checkpoints; one is written at the end.", _FILES)] = None,
    save_every: Annotated[int, _option("Also write one every so many steps.", _FILES)] = 0,
    resume: Annotated[
        Path | None, _option("Go on from the newest checkpoint in this folder; ranks and schedule may differ.", _FILES)
    ] = None,
    profile_layers: Annotated[
        Path | None,
        _option("Train nothing: time each layer of the model, and write a profile for `pipert tune`.", _FILES),
    ] = None,
    name: Annotated[str | None, _option("Results go to runs/NAME.", _FILES, show_default="time and schedule")] = None,
) -> None:
    """Train a small GPT through a pipeline, and show what was predicted and what was measured.

    Alone, it starts its ranks itself; under torchrun it is one of them.

    \b
    pipert train --verify                                a demonstration, some two minutes
    pipert train --schedule 1f1b --ranks 2 --data book.txt
    pipert train --vocab-parallel 2 --verify             the vocabulary split over the ranks
    pipert train --schedule zb-h1 --timed F=20,I=20,W=20
    pipert train --profile-layers layers.csv             what `pipert tune` wants
    pipert train --device cuda --one-process --dtype bf16 --dim 1024
    torchrun --nproc-per-node 4 -m pipert train --steps 500 --save out
    """  # noqa: D301
    config = TrainConfig(
        model=ModelConfig(DEFAULT_LAYERS if layers is None else layers, dim, heads, seq_len, positions, tied),
        more_layers=layers is None,
        schedule=schedule,
        ranks=ranks,
        microbatches=microbatches,
        chunks=chunks,
        costs=costs,
        costs_file=costs_file,
        memory_limit=memory_limit,
        plan=plan,
        batch_size=batch_size,
        steps=steps if steps is not None else 100 if timed is None else 10,
        seed=seed,
        lr=lr,
        warmup=warmup,
        clip=clip,
        dtype=dtype,
        device=device,
        recompute=recompute,
        post_validation=post_validation,
        vocab_parallel=_algorithm(vocab_parallel),
        batch_weight_grads=batch_weight_grads,
        data=data,
        save=save,
        save_every=save_every,
        resume=resume,
        verify=verify,
        timed=timed,
        name=name,
    )
    try:
        if profile_layers is not None:
            _profile_layers(config, profile_layers)
        elif one_process or "RANK" in os.environ:
            _be_a_rank(config, one_process)
        else:
            _start_ranks(config, context)
    except KeyboardInterrupt:
        raise typer.Exit(_INTERRUPTED) from None


def _algorithm(text: str) -> int:
    if text not in ("off", "1", "2"):
        raise ConfigError(f"--vocab-parallel must be off, 1 or 2, not {text!r}")
    return 0 if text == "off" else int(text)


def _profile_layers(config: TrainConfig, file: Path) -> None:
    from pipert.cli import inputs
    from pipert.cli.progress import progress_bar
    from pipert.train.profile_layers import NUM_ROUNDS, profile_layers
    from pipert.tune import dump_profile

    if config.device != "cpu":
        raise ConfigError("--profile-layers takes CPU times: leave out --device")
    with progress_bar("timing layers", NUM_ROUNDS) as advance:
        layers = profile_layers(config, advance)
    inputs.write(file, dump_profile(layers))
    typer.echo(f"{file}: {len(layers)} layers, {sum(layer.time for layer in layers):.4g} ms of CPU time per microbatch")


def _be_a_rank(config: TrainConfig, one_process: bool) -> None:
    from pipert.train import job

    leads = one_process or os.environ["RANK"] == "0"
    try:
        job.run(config, one_process=one_process, console=Console(highlight=False))
    except StageError as error:
        traceback.print_exception(error.__cause__)
        raise
    except PeerLost as error:
        if "KeyboardInterrupt" in str(error):
            raise KeyboardInterrupt from None
        if " failed at " in str(error):  # it says so itself
            raise typer.Exit(1) from None
        raise
    except PipertError as error:
        if not leads and (error.rank is None or isinstance(error, (ConfigError, PlanError))):  # all find the same
            raise typer.Exit(1) from None
        raise


def _start_ranks(config: TrainConfig, context: typer.Context) -> None:
    """Start the ranks, after a look at what they are told; all get the one plan that is made here."""
    from pipert import launch
    from pipert.train.plans import check, make_plan

    plan = make_plan(config, None)
    check(config, plan)
    with tempfile.TemporaryDirectory(prefix="pipert-") as folder:
        plan.save(Path(folder, "plan.json"))
        arguments = [*_options(context), f"--plan={folder}/plan.json", f"--name={config.run_name(plan.name)}"]
        status = launch.run([sys.executable, "-m", "pipert", "train", *arguments], plan.num_ranks)
    if status == _INTERRUPTED:
        raise KeyboardInterrupt
    if status != 0:
        raise typer.Exit(1)


def _options(context: typer.Context) -> list[str]:
    """Write the options of this call down again, but for those that made the plan, and the name."""
    options: list[str] = []
    for parameter in context.command.params:
        assert parameter.name is not None
        value = context.params.get(parameter.name)
        if value == parameter.default or parameter.name in (*_MAKE_THE_PLAN, "name"):
            continue
        if getattr(parameter, "is_flag", False):
            options.append((parameter.opts if value else parameter.secondary_opts)[0])
        else:
            options.append(f"{parameter.opts[0]}={value}")
    return options


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(train)
