"""S on the device, in either of two ways: one kernel, or the library's products and a pass over their logits.

Both subtract a reference that a sample of the columns gives, and both end the same: the sums of the pieces are put
together, rows whose maximum turns out too far above their reference are flagged, and those, if any, are done again by
the kernel, with their maximum. All without a word from the host.

Shapes: N tokens, D hidden, V rows of the shard; K sums of P pieces of a row; 4 statistics.
"""

from __future__ import annotations

import torch
import triton

from pipert.kernels.gpu import cublas
from pipert.kernels.gpu.device.exp_pass import exp_pass
from pipert.kernels.gpu.device.finish import finish_statistics
from pipert.kernels.gpu.device.fused import fused_score
from pipert.kernels.gpu.device.sample import sample_references
from pipert.kernels.gpu.device_info import INTERPRETED, capability_major, num_programs, tile_source
from pipert.kernels.gpu.memory import empty
from pipert.kernels.gpu.problem import UPCAST, ScoreProblem
from pipert.kernels.gpu.tile_configs import INTERPRETED as SMALL_TILES
from pipert.kernels.gpu.tile_configs import TileConfig, repair_config

#: z - reference up to here: far from the ends of fp32 for the sums, E' W and the coefficients' exp(reference - lse).
MAX_GAP = 32.0
_GROUP_M = 8
_SAMPLE = 64


def exp_block(problem: ScoreProblem) -> int:
    """Return the columns that a program of the pass over logits does."""
    return 4096 if problem.w_VD.shape[0] > 1024 else 1024


def fused_parts(problem: ScoreProblem, config: TileConfig) -> int:
    """Return the pieces that the kernel cuts a row into."""
    return -(-problem.w_VD.shape[0] // config.block_n)


def sample(problem: ScoreProblem) -> torch.Tensor:
    """Return new statistics [4, N], with the references in."""
    n, d = problem.x_ND.shape
    statistics_4N = empty((4, n), torch.float32, problem.x_ND.device)
    sample_references[(triton.cdiv(n, 32),)](
        problem.x_ND, problem.w_VD, problem.bias_or_any, statistics_4N, n, d, problem.num_real, problem.cap,
        BLOCK_R=32, BLOCK_C=_SAMPLE, BLOCK_K=64, BIAS=problem.flags["BIAS"], CAP=problem.flags["CAP"], UPCAST=UPCAST,
        num_warps=4, num_stages=4,
    )  # fmt: skip
    return statistics_4N


def run_fused(
    problem: ScoreProblem,
    statistics_4N: torch.Tensor,
    partial_KPN: torch.Tensor,
    config: TileConfig,
    num_sms: int | None,
    flagged_N: torch.Tensor | None = None,
) -> None:
    """Do all tiles, or those with a flagged row."""
    (n, d), v, tma, tma_out = problem.x_ND.shape, problem.w_VD.shape[0], problem.tma, problem.tma_out
    tiles = triton.cdiv(n, config.block_m) * fused_parts(problem, config)
    store = problem.out_NV is not None
    out = problem.x_ND if problem.out_NV is None else problem.out_NV
    fused_score[(num_programs(problem.x_ND.device, num_sms, config.per_sm, tiles),)](
        tile_source(problem.x_ND, config.block_m, config.block_k, tma=tma),
        tile_source(problem.w_VD, config.block_n, config.block_k, tma=tma),
        tile_source(out, config.block_m, config.block_n // 4, tma=tma_out),
        problem.local_N, problem.bias_or_any, statistics_4N, problem.local_N if flagged_N is None else flagged_N,
        partial_KPN, n, v, d, problem.num_real, problem.cap,
        BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCK_K=config.block_k, GROUP_M=_GROUP_M, **problem.flags,
        STORE=store, REPAIR=flagged_N is not None, FLATTEN=config.flatten, TMA=tma, TMA_OUT=tma_out, UPCAST=UPCAST,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip


def run_library(
    problem: ScoreProblem, statistics_4N: torch.Tensor, partial_KPN: torch.Tensor, shape: tuple[int, int]
) -> None:
    """Multiply chunk by chunk into one workspace, and pass over each."""
    n, v, block = problem.num_tokens, problem.w_VD.shape[0], exp_block(problem)
    store = problem.out_NV is not None
    out = problem.x_ND if problem.out_NV is None else problem.out_NV
    chunk_rows, chunk_cols = min(shape[0], n), min(shape[1], v)
    workspace = empty((chunk_rows * chunk_cols,), torch.float32, statistics_4N.device)
    for row in range(0, n, chunk_rows):
        for col in range(0, v, chunk_cols):
            rows, cols = min(chunk_rows, n - row), min(chunk_cols, v - col)
            logits = workspace[: rows * cols].view(rows, cols)
            cublas.multiply(problem.x_ND[row : row + rows], problem.w_VD[col : col + cols].t(), logits)
            exp_pass[(rows, triton.cdiv(cols, block))](
                logits, out, problem.local_N, problem.bias_or_any, statistics_4N, partial_KPN,
                row, col, cols, n, v, problem.num_real, partial_KPN.shape[1], problem.cap,
                BLOCK=block, **problem.flags, STORE=store, num_warps=8,
            )  # fmt: skip


def finish(
    problem: ScoreProblem,
    statistics_4N: torch.Tensor,
    partial_KPN: torch.Tensor,
    flagged_N: torch.Tensor,
    *,
    repaired_rows: int | None = None,
) -> None:
    """Put the sums together and flag rows; or, ``repaired_rows`` being the rows of a tile, those done again."""
    n = problem.num_tokens
    finish_statistics[(triton.cdiv(n, 32),)](
        statistics_4N, partial_KPN, flagged_N, problem.local_N, n, partial_KPN.shape[1], MAX_GAP,
        BLOCK_R=32, BLOCK_P=32, EXTRA=problem.extra, REPAIRED=repaired_rows is not None,
        REPAIR_ROWS=repaired_rows or 1, num_warps=4,
    )  # fmt: skip


def repair(problem: ScoreProblem, statistics_4N: torch.Tensor, flagged_N: torch.Tensor, num_sms: int | None) -> None:
    """Do again all tiles with a flagged row; where there is none, next to nothing."""
    config = repair_config_of(problem)
    partial_KPN = partial_sums(problem, fused_parts(problem, config))
    run_fused(problem, statistics_4N, partial_KPN, config, num_sms, flagged_N)
    finish(problem, statistics_4N, partial_KPN, flagged_N, repaired_rows=config.block_m)


def repair_config_of(problem: ScoreProblem) -> TileConfig:
    """Return the tiles that rows are done again in."""
    if INTERPRETED:
        return SMALL_TILES
    return repair_config(capability_major(problem.x_ND.device), loads=problem.loads)


def partial_sums(problem: ScoreProblem, num_parts: int) -> torch.Tensor:
    """Return room for the sums of all pieces of all rows."""
    return empty((problem.num_sums, num_parts, problem.num_tokens), torch.float32, problem.x_ND.device)


def score_rows(problem: ScoreProblem, way: TileConfig | tuple[int, int], num_sms: int | None) -> torch.Tensor:
    """Do S for tokens whose sums fit in the workspace: by the kernel with these tiles, or by chunks of this shape."""
    statistics_4N = sample(problem)
    flagged_N = empty((problem.num_tokens,), torch.int32, statistics_4N.device)
    if isinstance(way, TileConfig):
        partial_KPN = partial_sums(problem, fused_parts(problem, way))
        run_fused(problem, statistics_4N, partial_KPN, way, num_sms)
    else:
        partial_KPN = partial_sums(problem, triton.cdiv(problem.w_VD.shape[0], exp_block(problem)))
        run_library(problem, statistics_4N, partial_KPN, way)
    finish(problem, statistics_4N, partial_KPN, flagged_N)
    repair(problem, statistics_4N, flagged_N, num_sms)
    return statistics_4N
