"""Checkpoints: torch.distributed.checkpoint under the model's own parameter names.

A checkpoint is a folder ``step-000060`` in the folder that ``--save`` names. It knows nothing of ranks, stages or
schedules, so any other pipeline resumes it. It is written beside its place and moved there when it is whole, so what
was saved before is never damaged. (Torch reads it with pickle: resume only from checkpoints that you trust.)
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipert.errors import ConfigError, PipertError
from pipert.train.optim import AdamW
from pipert.train.resume import ABOUT_FILE

State = dict[str, dict[str, Tensor]]


def save(folder: Path, step: int, optimizer: AdamW, about: Mapping[str, Any]) -> Path:
    """Write the checkpoint of ``step`` finished steps; every rank calls this, each with its own stages' optimizer.

    Args:
        about: what must be the same when it is resumed, e.g. the model's shape.

    Returns:
        The checkpoint's folder.

    Raises:
        PipertError: it cannot be written; what was saved before is still there.
    """
    from torch.distributed.checkpoint.api import CheckpointException

    final = folder / f"step-{step:06d}"
    try:
        _write(final, step, optimizer, about)
    except (OSError, RuntimeError, CheckpointException) as error:
        raise PipertError(f"the checkpoint {final} cannot be written: {error}") from error
    return final


def load(checkpoint: Path, optimizer: AdamW, *, alone: bool = False) -> None:
    """Fill the optimizer's state and the model's parameters; every rank calls this, or one process ``alone``.

    Raises:
        ConfigError: the checkpoint cannot be read, or lacks a parameter.
    """
    from torch.distributed.checkpoint import state_dict_loader
    from torch.distributed.checkpoint.api import CheckpointException

    state = _state(optimizer)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state_dict_loader.load(state, checkpoint_id=checkpoint, no_dist=alone or not dist.is_initialized())
    except (CheckpointException, OSError) as error:
        raise ConfigError(f"the checkpoint {checkpoint} cannot be read: {error}") from error
    _fill(optimizer, state)


def _write(final: Path, step: int, optimizer: AdamW, about: Mapping[str, Any]) -> None:
    from torch.distributed.checkpoint import state_dict_saver

    partial = final.with_name(f".{final.name}.partial")
    if _is_leader():
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    _barrier()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without a process group torch warns that it saves from one process
        state_dict_saver.save(_state(optimizer), checkpoint_id=partial, no_dist=not dist.is_initialized())
    if _is_leader():
        (partial / ABOUT_FILE).write_text(json.dumps({"step": step, **about}, indent=1))
        _replace(partial, final)
    _barrier()


def _state(optimizer: AdamW) -> State:
    """Name the tensors of a checkpoint; copies of one parameter (replicas, tied) have one name and one value."""
    state: State = {"model": {}, "master": {}, "exp_avg": {}, "exp_avg_sq": {}, "num_updates": {}}
    for copy, parameter in optimizer.model_parameters.items():
        name, master = copy.name, optimizer.masters[copy]
        slots = optimizer.state[master]
        state["model"][name] = parameter.detach()
        if master is not parameter:
            state["master"][name] = master
        state["exp_avg"][name] = slots["exp_avg"]
        state["exp_avg_sq"][name] = slots["exp_avg_sq"]
        state["num_updates"][name] = slots["step"]
    return state


@torch.no_grad()
def _fill(optimizer: AdamW, state: State) -> None:
    for copy, parameter in optimizer.model_parameters.items():
        name, master = copy.name, optimizer.masters[copy]
        slots = optimizer.state[master]
        parameter.copy_(state["model"][name])
        if master is not parameter:
            master.copy_(state["master"][name])
        slots["exp_avg"].copy_(state["exp_avg"][name])
        slots["exp_avg_sq"].copy_(state["exp_avg_sq"][name])
        slots["step"].copy_(state["num_updates"][name])


def _replace(partial: Path, final: Path) -> None:
    """Move ``partial`` to ``final``; an older checkpoint of the same step is kept until the new one is in place."""
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        os.rename(final, old)
    os.rename(partial, final)
    shutil.rmtree(old, ignore_errors=True)


def _is_leader() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()
