"""Digests of all gradients and parameters, every copy of each."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pipert.digest import digest
from pipert.numerics import Copy, gradient_of

Digests = dict[Copy, bytes]


def gradient_digests(parameters: Mapping[Copy, torch.nn.Parameter]) -> Digests:
    """Return the digest of each parameter's gradient."""
    return {key: digest(gradient_of(parameter)) for key, parameter in parameters.items()}


def parameter_digests(parameters: Mapping[Copy, torch.nn.Parameter]) -> Digests:
    """Return the digest of each parameter."""
    return {key: digest(parameter) for key, parameter in parameters.items()}


def first_difference(ours: Digests, theirs: Digests) -> str | None:
    """Name the first parameter (by stage, then by rank) whose digest differs; None if all agree."""
    for copy in sorted(ours.keys() | theirs.keys(), key=lambda copy: (copy.stage, copy.rank, copy.name)):
        if ours.get(copy) != theirs.get(copy):
            return f"{copy.name} (stage {copy.stage} on rank {copy.rank})"
    return None
