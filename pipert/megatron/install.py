"""Puts pipert's function in the place of Megatron's, wherever that is bound."""

from __future__ import annotations

import functools
import importlib.metadata
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from pipert.errors import ConfigError
from pipert.megatron.options import Options
from pipert.megatron.rebind import Rebinding, rebind

KNOWN_VERSIONS = ("0.16.1",)
"""The versions of megatron-core whose contract has been read, item by item."""

_installed: list[Rebinding] = []
_closers: list[Callable[[], None]] = []


def install(
    schedule: str | None = None,
    *,
    costs: str | None = None,
    memory_limit: float | None = None,
    runs: str | os.PathLike[str] | None = None,
    timeout_ms: int = 600_000,
    vocab_parallel: str = "off",
) -> None:
    """Let ``get_forward_backward_func`` of the installed megatron-core give a function that runs ``schedule``.

    Every module that has bound the name already gets the new one; those that are imported later find it at its home.
    With a V-shaped or wave schedule, or ``vocab_parallel``, call this before the model is built. Calling it again
    changes the choices.

    Args:
        schedule: a schedule's name or a file that holds one; None for the order that Megatron itself has.
        costs: what ops cost, as ``F=1,I=1,W=1`` or the name of a TOML file; for schedules made from costs.
        memory_limit: the most activation that a rank may hold, in the unit of the costs' ``act``.
        runs: the folder in which the run leaves its plan, trace and timeline; None: nothing is left.
        timeout_ms: the longest wait for another rank.
        vocab_parallel: ``"2"`` splits the output layer over all ranks of the pipeline, by the vocabulary (Algorithm 2
            of arXiv 2411.05288); ``"off"`` leaves it to the last stage.

    Raises:
        ConfigError: megatron-core is not installed, or in a version that is not known; an unknown schedule; or
            Algorithm 1.
    """
    options = Options(schedule, costs, memory_limit, None if runs is None else Path(runs), timeout_ms, vocab_parallel)
    check_version()
    uninstall()

    from megatron.core.pipeline_parallel import schedules as megatron_schedules

    from pipert.megatron import layers, output_layer_patches, placement
    from pipert.megatron.forward_backward import make_forward_backward

    layers.register()
    shape = placement.shape_of(schedule)
    if shape is not None:
        _installed.append(placement.install(shape))
    if options.splits_vocabulary:
        _installed.append(output_layer_patches.patch())
    forward_backward, close = make_forward_backward(options)
    original = megatron_schedules.get_forward_backward_func
    _installed.append(rebind(original, _chooser(original, forward_backward)))
    _installed.append(rebind(dist.destroy_process_group, _closing_first(dist.destroy_process_group, close)))
    _closers.append(close)


def uninstall() -> None:
    """Give Megatron its own functions back."""
    while _installed:
        _installed.pop().undo()
    _closers.clear()


def finish() -> None:
    """End the run: write its files and close its engines. Collective; ``destroy_process_group`` does it by itself."""
    for close in _closers:
        close()


def check_version() -> None:
    """Look at the installed megatron-core.

    Raises:
        ConfigError: there is none, or its version is not known.
    """
    known = " and ".join(KNOWN_VERSIONS)
    try:
        version = importlib.metadata.version("megatron-core")
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError("megatron-core is not installed: pip install 'pipert[megatron]'") from None
    if version not in KNOWN_VERSIONS:
        raise ConfigError(
            f"megatron-core {version} is installed; the drop-in knows {known}, and another version's contract may "
            "differ: pip install 'pipert[megatron]'"
        )


def _closing_first(original: Callable[..., None], close: Callable[[], None]) -> Callable[..., None]:
    """Return what stands in for ``destroy_process_group``."""

    @functools.wraps(original)
    def destroy_process_group(group: Any = None) -> None:
        if group in (None, dist.group.WORLD):
            close()
        original(group)

    return destroy_process_group


def _chooser(original: Callable[..., Any], forward_backward: Callable[..., Any]) -> Callable[..., Any]:
    """Return what stands in for ``get_forward_backward_func``."""

    @functools.wraps(original)
    def get_forward_backward_func(pp_size: int | None = None, vp_size: int | None = None) -> Callable[..., Any]:
        from megatron.core import parallel_state

        size = pp_size
        if pp_size is None and vp_size is None:
            size = parallel_state.get_pipeline_model_parallel_world_size()
        # Without a pipeline there is nothing to schedule; and what Megatron refuses, it refuses itself.
        return forward_backward if size is not None and size > 1 else original(pp_size, vp_size)

    return get_forward_backward_func
