"""The precision in which the output layer adds up."""

from __future__ import annotations

import torch


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return fp64 for fp64, and fp32 for every other floating dtype: that of statistics, coefficients and gradients."""
    return torch.float64 if dtype == torch.float64 else torch.float32
