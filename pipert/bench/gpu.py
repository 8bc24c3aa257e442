"""The CUDA device that the benchmarks run on, and what they need of it beside its streams."""

from __future__ import annotations

import torch
from torch import Tensor

from pipert import _core
from pipert.engine.device import CudaDevice
from pipert.errors import ConfigError


def device() -> CudaDevice:
    """Return the first CUDA device, ready for work.

    Raises:
        CudaError: there is none, or its driver cannot be used; the message says why.
        ConfigError: this torch was built without CUDA.
    """
    _core.cuda_driver_version()
    if not torch.cuda.is_available():
        raise ConfigError(
            f"torch {torch.__version__} cannot use the CUDA device: install a torch that was built for it"
        )
    torch.cuda.set_device(0)
    settle(CudaDevice(0))
    return CudaDevice(0)


def settle(device: CudaDevice) -> None:
    """Wait for what torch has enqueued."""
    if has_torch(device):
        torch.cuda.synchronize(device.torch_device)


def has_torch(device: CudaDevice) -> bool:
    """Whether torch computes on this device; it does not on a driver's stand-in."""
    return device.torch_device.type == "cuda"


def random_bytes(device: CudaDevice, num_bytes: int, seed: int) -> Tensor:
    """Return ``[num_bytes]`` random bytes on the device, the same ones for the same seed."""
    memory = device.empty(num_bytes)
    generator = torch.Generator(memory.device).manual_seed(seed)
    memory.random_(0, 256, generator=generator)
    settle(device)
    return memory


def name_of(num_bytes: int) -> str:
    """Return a size for people: ``"64 KiB"``."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if num_bytes >= unit and num_bytes % unit == 0:
            return f"{num_bytes // unit} {name}"
    return f"{num_bytes} B"
