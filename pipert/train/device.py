"""Where a run computes: on the CPU, or on CUDA devices, of which each rank of this machine takes the next."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pipert.errors import ConfigError, CudaError

if TYPE_CHECKING:
    import torch

DEVICES = ("cpu", "cuda")
_WORKSPACES = (
    "CUBLAS_WORKSPACE_CONFIG"  # cuBLAS reads it when it starts; without it its sums may differ from run to run
)


def check_device(name: str) -> None:
    """Look, without torch, whether there is such a device.

    Raises:
        ConfigError: there is no CUDA device; it says why.
    """
    if name == "cuda":
        from pipert import _core

        try:
            _core.cuda_driver_version()
        except CudaError as error:
            raise ConfigError(f"--device cuda: {error}; without --device the ranks compute on the CPU") from error


def open_device(name: str, *, deterministic: bool) -> torch.device:
    """Return where this process computes, ready for use.

    Args:
        name: one of ``DEVICES``.
        deterministic: whether a CUDA device is to give the same bits every time; for all that this process does.

    Raises:
        ConfigError: torch cannot use a CUDA device; it says why.
    """
    import torch

    if name == "cpu":
        return torch.device("cpu")
    check_device(name)
    return open_cuda(int(os.environ.get("LOCAL_RANK", "0")), deterministic=deterministic)


def open_cuda(local_rank: int, *, deterministic: bool) -> torch.device:
    """Return the CUDA device of a rank, as the current one; see :func:`open_device`."""
    import torch

    if not torch.backends.cuda.is_built():  # type: ignore[no-untyped-call]
        raise ConfigError(f"--device cuda: this torch ({torch.__version__}) is built without CUDA; install one with it")
    if deterministic:
        os.environ.setdefault(_WORKSPACES, ":4096:8")
        torch.use_deterministic_algorithms(True)
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    except RuntimeError as error:
        raise ConfigError(f"--device cuda: torch {torch.__version__} cannot use it: {error}") from error
    return device


def device_name(device: torch.device) -> str:
    """Return what a CUDA device is called, ``"cpu"`` for the CPU."""
    import torch

    return str(torch.cuda.get_device_name(device)) if device.type == "cuda" else device.type
