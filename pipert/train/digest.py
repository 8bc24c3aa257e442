"""Short digests of tensors, to compare gradients across processes bit by bit without sending them."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from pipert.numerics import gradient_of
from pipert.train.optim import ParameterKey

Digests = dict[ParameterKey, bytes]


def digest(tensor: Tensor | None) -> bytes:
    """Return a digest of a CPU tensor's type, shape and bits; of None, nothing."""
    if tensor is None:
        return b""
    tensor = tensor.detach().contiguous()
    content = (ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr()) if tensor.nbytes else b""
    return hashlib.blake2b(content, digest_size=16, key=f"{tensor.dtype}{tuple(tensor.shape)}".encode()[:64]).digest()


def gradient_digests(parameters: Mapping[ParameterKey, torch.nn.Parameter]) -> Digests:
    """Return the digest of each parameter's gradient."""
    return {key: digest(gradient_of(parameter)) for key, parameter in parameters.items()}


def parameter_digests(parameters: Mapping[ParameterKey, torch.nn.Parameter]) -> Digests:
    """Return the digest of each parameter."""
    return {key: digest(parameter) for key, parameter in parameters.items()}


def first_difference(ours: Digests, theirs: Digests) -> str | None:
    """Name the first parameter (in model order) whose digest differs; None if all agree."""
    for stage, name in sorted(ours.keys() | theirs.keys()):
        if ours.get((stage, name)) != theirs.get((stage, name)):
            return f"{name} (stage {stage})"
    return None
