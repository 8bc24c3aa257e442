"""Room for results, as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return a tensor that is not filled, even where torch is asked for deterministic algorithms.

    There torch fills whatever it allocates, which for E' is a pass over [N, V]; kernels write all of what they are
    given. On a CPU it is left to: so the interpreter's tests see what is not written.
    """
    if device.type != "cuda":
        return torch.empty(shape, dtype=dtype, device=device)
    settings: Any = torch.utils.deterministic
    filled = settings.fill_uninitialized_memory
    settings.fill_uninitialized_memory = False
    try:
        return torch.empty(shape, dtype=dtype, device=device)
    finally:
        settings.fill_uninitialized_memory = filled
