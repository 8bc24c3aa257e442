"""What a launch needs to know of the device, and of its tensors."""

from __future__ import annotations

import functools
import os
from typing import Any

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

#: Whether kernels run in Triton's interpreter, on CPU tensors.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"


@functools.cache
def _properties(device: torch.device) -> tuple[str, int, int]:
    properties = torch.cuda.get_device_properties(device)
    return properties.name, properties.major, properties.multi_processor_count


def device_name(device: torch.device) -> str:
    """Return the model of the GPU."""
    return "interpreter" if INTERPRETED else _properties(device)[0]


def capability_major(device: torch.device) -> int:
    """Return the first digit of the compute capability."""
    return 9 if INTERPRETED else _properties(device)[1]


def num_programs(device: torch.device, num_sms: int | None, per_sm: int, tiles: int) -> int:
    """Return the programs of a persistent kernel: as many as run at once, or ``num_sms``, and no more than tiles."""
    sms = 3 if INTERPRETED else _properties(device)[2]
    running = sms * per_sm if num_sms is None else min(num_sms, sms)
    return max(1, min(running, tiles))


def has_aligned_rows(*matrices: torch.Tensor) -> bool:
    """Whether tiles of all these can be moved 16 bytes at a time: by TMA on Hopper, for which rows must begin so.

    Before Hopper the compiler must see it, which it does of multiples of 16 elements.
    """
    elements = 8 if capability_major(matrices[0].device) >= 9 else 16
    return all(t.numel() > 0 and t.data_ptr() % 16 == 0 and t.stride(0) % elements == 0 for t in matrices)


def can_use_tma(*matrices: torch.Tensor) -> bool:
    """Whether TMA can move tiles of all these."""
    return capability_major(matrices[0].device) >= 9 and has_aligned_rows(*matrices)


def tile_source(matrix: torch.Tensor, rows: int, cols: int, *, tma: bool) -> Any:
    """Return what a kernel loads or stores tiles of [rows, cols] by: a descriptor where TMA, else the tensor."""
    if not tma:
        return matrix
    return TensorDescriptor(matrix, list(matrix.shape), list(matrix.stride()), [rows, cols])
