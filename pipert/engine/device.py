"""The memory that an engine works in: the host's, or that of one CUDA device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipert.errors import ConfigError

if TYPE_CHECKING:
    from pipert.replicas import Replica
    from pipert.stages import StageProtocol


class HostDevice:
    """Host memory."""

    torch_device = torch.device("cpu")
    is_host = True

    def holds(self, tensor: Tensor) -> bool:
        """Whether ``tensor`` lies here."""
        return tensor.is_cpu


class CudaDevice:
    """The memory of CUDA device ``index``."""

    is_host = False

    def __init__(self, index: int) -> None:
        self.index = index
        self.torch_device = torch.device("cuda", index)

    def holds(self, tensor: Tensor) -> bool:
        """Whether ``tensor`` lies here."""
        return tensor.get_device() == self.index

    def current_stream(self) -> int:
        """Return the handle (``cudaStream_t``) of torch's current stream."""
        return int(torch.cuda.current_stream(self.torch_device).cuda_stream)

    def empty(self, num_bytes: int) -> Tensor:
        """Allocate ``[num_bytes]`` bytes."""
        return torch.empty(num_bytes, dtype=torch.uint8, device=self.torch_device)


Device = HostDevice | CudaDevice


def device_of(stages: dict[Replica, StageProtocol]) -> Device:
    """Return where the parameters and buffers of all stages lie: the host's memory if there are none.

    Raises:
        ConfigError: they lie in several places, or on a device that is neither a CPU nor CUDA.
    """
    first: tuple[str, torch.device] | None = None
    for (_, stage), name, tensor in _tensors(stages):
        here = f"stage {stage}: {name}", tensor.device
        first = first or here
        if first[1] != here[1]:
            raise ConfigError(f"{first[0]} is on {first[1]}, {here[0]} on {here[1]}; a process works on one device")
    if first is None or first[1].type == "cpu":
        return HostDevice()
    if first[1].type != "cuda":
        raise ConfigError(f"{first[0]} is on {first[1]}; stages live on the CPU or on a CUDA device")
    return CudaDevice(first[1].index)


def _tensors(stages: dict[Replica, StageProtocol]) -> Iterable[tuple[Replica, str, Tensor]]:
    for replica, stage in stages.items():
        module = getattr(stage, "module", None)
        if isinstance(module, torch.nn.Module):
            for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
                yield replica, name, tensor
