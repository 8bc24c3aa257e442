"""Which checkpoint a run goes on from, and whether it may; without torch, so that mistakes show at once."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipert.errors import ConfigError
from pipert.train.config import TrainConfig

ABOUT_FILE = "pipert.json"


def first_step(config: TrainConfig) -> int:
    """Return the step that a run starts with: 0, or that of the checkpoint that it resumes.

    Raises:
        ConfigError: there is no such checkpoint, it was made for another model, or it has no step left to do.
    """
    if config.resume is None:
        return 0
    checkpoint = find(config.resume)
    step = read_step(checkpoint, about(config))
    if step >= config.steps:
        raise ConfigError(f"{checkpoint} has done all of its {config.steps} steps: ask for more with --steps")
    return step


def about(config: TrainConfig) -> dict[str, Any]:
    """Return what must be the same when a run is resumed."""
    return {**dataclasses.asdict(config.model), "dtype": config.dtype}


def find(folder: Path) -> Path:
    """Return the newest checkpoint in a folder, or the folder if it is one.

    Raises:
        ConfigError: there is none.
    """
    if (folder / ABOUT_FILE).exists():
        return folder
    found = sorted(path for path in folder.glob("step-*") if (path / ABOUT_FILE).exists())
    if not found:
        raise ConfigError(f"--resume {folder}: no checkpoint there")
    return found[-1]


def read_step(checkpoint: Path, about: Mapping[str, Any]) -> int:
    """Return how many steps the checkpoint has finished.

    Raises:
        ConfigError: it is damaged, or was made by a run that differs in ``about``.
    """
    try:
        found = json.loads((checkpoint / ABOUT_FILE).read_text())
        step = int(found.pop("step"))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(f"the checkpoint {checkpoint} is damaged: {error}") from error
    for name, value in about.items():
        if found.get(name) != value:
            raise ConfigError(
                f"the checkpoint {checkpoint} was made with {name} {found.get(name)}, this run has {value}"
            )
    return step
