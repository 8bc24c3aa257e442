"""Which set of functions computes on a given tensor."""

from __future__ import annotations

import importlib

import torch

from pipert.errors import ConfigError
from pipert.kernels.backend import Backend
from pipert.kernels.reference.backend import ReferenceBackend

_REFERENCE = ReferenceBackend()


def backend_for(x: torch.Tensor) -> Backend:
    """Return the Triton kernels for bf16 on a GPU, and plain torch for all else.

    Raises:
        ConfigError: it must be the kernels, but Triton is not there.
    """
    if not (x.is_cuda and x.dtype == torch.bfloat16):
        return _REFERENCE
    try:
        module = importlib.import_module("pipert.kernels.gpu.backend")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "triton":
            raise
        raise ConfigError(
            "bf16 on a GPU runs in Triton kernels, but there is no module named triton: install pipert[cuda]"
        ) from error
    kernels: Backend = module.backend()
    return kernels
