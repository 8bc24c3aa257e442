"""Which way S goes: every candidate for the device and the shape, and the choice among them."""

from __future__ import annotations

from typing import Literal

import torch

from pipert.errors import ConfigError
from pipert.kernels.gpu import cublas
from pipert.kernels.gpu.device_info import INTERPRETED, capability_major
from pipert.kernels.gpu.problem import ScoreProblem
from pipert.kernels.gpu.score import exp_block, fused_parts, repair_config_of, score_rows
from pipert.kernels.gpu.tile_configs import INTERPRETED as SMALL_TILES
from pipert.kernels.gpu.tile_configs import TileConfig, score_configs
from pipert.kernels.gpu.tuning import Tuner
from pipert.kernels.gpu.workspace import chunk_shapes, rows_at_a_time
from pipert.kernels.statistics import RowStatistics

Route = Literal["fused", "library"]
Way = TileConfig | tuple[int, int]


def ways(
    problem: ScoreProblem, route: Route | None, max_workspace_bytes: int | None, num_sms: int | None
) -> dict[str, Way]:
    """Return all ways by name, the likeliest first.

    Raises:
        ConfigError: where the route asked for cannot be gone.
    """
    found: dict[str, Way] = {}
    # The library's products cannot be held to a number of SMs.
    able = num_sms is None and cublas.is_able(problem.x_ND.device)
    if route == "library" and not able:
        raise ConfigError(
            "the library's route needs a torch whose products of bf16 give fp32 (2.10), and no num_sms; "
            "leave the route open"
        )
    if able and route != "fused":
        shapes = chunk_shapes(problem, exp_block(problem), max_workspace_bytes)
        found |= {f"library {rows}x{cols}": (rows, cols) for rows, cols in shapes}
    if route != "library":
        configs = _configs(problem)
        found |= {f"fused {config}": config for config in configs}
    return found


def _configs(problem: ScoreProblem) -> tuple[TileConfig, ...]:
    if INTERPRETED:
        return (SMALL_TILES,)
    major = capability_major(problem.x_ND.device)
    capped = problem.soft_cap is not None
    return score_configs(major, loads=problem.loads, stores=problem.stores, capped=capped)


def run_score(
    problem: ScoreProblem, tuner: Tuner, route: Route | None, max_workspace_bytes: int | None, num_sms: int | None
) -> RowStatistics:
    """Do S in the fastest way that keeps to the workspace and the SMs."""
    found = ways(problem, route, max_workspace_bytes, num_sms)
    narrowest = max(fused_parts(problem, c) for c in (*_configs(problem), repair_config_of(problem)))
    step = rows_at_a_time(problem, narrowest, max_workspace_bytes)

    def run(name: str) -> torch.Tensor:
        starts = range(0, problem.num_tokens, step)
        parts = [score_rows(problem.rows(start, start + step), found[name], num_sms) for start in starts]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    key = f"{problem.key} {route or 'any'} {max_workspace_bytes or 'default'} B, {num_sms or 'all'} SMs"
    return RowStatistics(run(tuner.choose(key, list(found), run, problem.x_ND.device)))
