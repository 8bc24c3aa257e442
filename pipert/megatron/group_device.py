"""Where a process group's backend wants its tensors."""

from __future__ import annotations

import torch
import torch.distributed as dist


def group_device(group: dist.ProcessGroup) -> torch.device:
    """Return the device of tensors that ``group`` moves."""
    if dist.get_backend(group) == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
