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
from pipert.kernels import VocabShard
from pipert.numerics import Copy
from pipert.train.optim import AdamW
from pipert.train.resume import ABOUT_FILE
from pipert.train.shards import Shards, gathered, rows_of

State = dict[str, dict[str, Tensor]]


def save(folder: Path, step: int, optimizer: AdamW, about: Mapping[str, Any], shards: Shards) -> Path:
    """Write the checkpoint of ``step`` finished steps; every rank calls this, each with its own stages' optimizer.

    Args:
        about: what must be the same when it is resumed, e.g. the model's shape.
        shards: which of the parameters are shards of the vocabulary; the checkpoint holds them whole.

    Returns:
        The checkpoint's folder.

    Raises:
        PipertError: it cannot be written; what was saved before is still there.
    """
    from torch.distributed.checkpoint.api import CheckpointException

    final = folder / f"step-{step:06d}"
    try:
        _write(final, step, optimizer, about, shards)
    except (OSError, RuntimeError, CheckpointException) as error:
        raise PipertError(f"the checkpoint {final} cannot be written: {error}") from error
    return final


def load(checkpoint: Path, optimizer: AdamW, shards: Shards, *, alone: bool = False) -> None:
    """Fill the optimizer's state and the model's parameters; every rank calls this, or one process ``alone``.

    ``shards`` are those of :func:`save`; the checkpoint may have been written with others, or with none.

    Raises:
        ConfigError: the checkpoint cannot be read, or lacks a parameter.
    """
    from torch.distributed.checkpoint import state_dict_loader
    from torch.distributed.checkpoint.api import CheckpointException

    state = _state(optimizer, shards)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state_dict_loader.load(state, checkpoint_id=checkpoint, no_dist=alone or not dist.is_initialized())
    except (CheckpointException, OSError) as error:
        raise ConfigError(f"the checkpoint {checkpoint} cannot be read: {error}") from error
    _fill(optimizer, state, shards)


def _write(final: Path, step: int, optimizer: AdamW, about: Mapping[str, Any], shards: Shards) -> None:
    from torch.distributed.checkpoint import state_dict_saver

    partial = final.with_name(f".{final.name}.partial")
    if _is_leader():
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    _barrier()
    state = _state(optimizer, shards)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without a process group torch warns that it saves from one process
        state_dict_saver.save(state, checkpoint_id=partial, no_dist=not dist.is_initialized())
    if _is_leader():
        (partial / ABOUT_FILE).write_text(json.dumps({"step": step, **about}, indent=1))
        _replace(partial, final)
    _barrier()


def _tensors(optimizer: AdamW, copy: Copy) -> dict[str, Tensor]:
    """Return what a checkpoint holds of one parameter, by kind."""
    parameter, master = optimizer.model_parameters[copy], optimizer.masters[copy]
    slots = optimizer.state[master]
    tensors = {"model": parameter.detach(), "exp_avg": slots["exp_avg"], "exp_avg_sq": slots["exp_avg_sq"]}
    if master is not parameter:
        tensors["master"] = master
    return {**tensors, "num_updates": slots["step"]}


def _state(optimizer: AdamW, shards: Shards) -> State:
    """Name the tensors of a checkpoint; copies of one parameter (replicas, tied) have one name and one value."""
    state: State = {"model": {}, "master": {}, "exp_avg": {}, "exp_avg_sq": {}, "num_updates": {}}
    parts: dict[tuple[str, str], dict[VocabShard, Tensor]] = {}
    for copy in optimizer.model_parameters:
        for kind, tensor in _tensors(optimizer, copy).items():
            if copy in shards and tensor.dim():
                parts.setdefault((kind, copy.name), {})[shards[copy]] = tensor
            else:
                state[kind][copy.name] = tensor
    for (kind, name), of_shards in parts.items():
        state[kind][name] = gathered(of_shards)
    return state


@torch.no_grad()
def _fill(optimizer: AdamW, state: State, shards: Shards) -> None:
    for copy in optimizer.model_parameters:
        for kind, tensor in _tensors(optimizer, copy).items():
            whole = state[kind][copy.name]
            tensor.copy_(rows_of(shards[copy], whole) if copy in shards and tensor.dim() else whole)


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
