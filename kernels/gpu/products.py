"""The matrix products of S and T: the library's, or persistent ones for a number of SMs.

Shapes: N tokens, D hidden, V rows of the shard; a product is [M, N] with K multiplied.
"""

from __future__ import annotations

import torch
import triton

from pipert.kernels.gpu import cublas
from pipert.kernels.gpu.device.matmul import persistent_matmul
from pipert.kernels.gpu.device_info import (
    INTERPRETED,
    can_use_tma,
    capability_major,
    device_name,
    has_aligned_rows,
    num_programs,
    tile_source,
)
from pipert.kernels.gpu.memory import empty
from pipert.kernels.gpu.problem import UPCAST
from pipert.kernels.gpu.tile_configs import INTERPRETED as SMALL_TILES
from pipert.kernels.gpu.tile_configs import TileConfig, product_configs
from pipert.kernels.gpu.tuning import Tuner, bucket

_GROUP_M = 8


def multiply(exp_NV: torch.Tensor, w_VD: torch.Tensor, tuner: Tuner, num_sms: int | None) -> torch.Tensor:
    """Return ``E' W`` in fp32."""
    out_ND = empty((exp_NV.shape[0], w_VD.shape[1]), torch.float32, exp_NV.device)
    if num_sms is None and cublas.is_able(exp_NV.device):
        cublas.multiply(exp_NV, w_VD, out_ND)
    else:
        _persistent(exp_NV, w_VD, out_ND, tuner, num_sms, transposed=False)
    return out_ND


def add_transposed(
    main_VD: torch.Tensor, exp_NV: torch.Tensor, scaled_ND: torch.Tensor, tuner: Tuner, num_sms: int | None
) -> None:
    """Do ``main += E'ᵀ scaled`` in place."""
    # A matrix of one row or column would be taken for a bias by torch, and go another way.
    if num_sms is None and min(main_VD.shape) > 1 and cublas.is_able(exp_NV.device):
        cublas.add_product(exp_NV.t(), scaled_ND, main_VD)
    else:
        _persistent(exp_NV, scaled_ND, main_VD, tuner, num_sms, transposed=True)


def _persistent(
    a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, tuner: Tuner, num_sms: int | None, *, transposed: bool
) -> None:
    """Do ``out = a b``, or ``out += aᵀ b``."""
    device, tma = a.device, can_use_tma(a, b)
    configs = product_configs(capability_major(device), loads=has_aligned_rows(a, b))
    if INTERPRETED:
        configs = (SMALL_TILES,)
    named = {str(config): config for config in configs}
    kind = "T" if transposed else "product"
    key = f"{device_name(device)} | {kind} {bucket(a.shape[0])} {a.shape[1]} {b.shape[1]}, {num_sms or 'all'} SMs"

    def measure(name: str) -> None:
        run_persistent(a, b, torch.empty_like(out), named[name], num_sms, transposed=transposed, tma=tma)

    config = named[tuner.choose(key, list(named), measure, device)]
    run_persistent(a, b, out, config, num_sms, transposed=transposed, tma=tma)


def run_persistent(
    a: torch.Tensor,
    b: torch.Tensor,
    out: torch.Tensor,
    config: TileConfig,
    num_sms: int | None,
    *,
    transposed: bool,
    tma: bool,
) -> None:
    """Do so with these tiles."""
    (m, n), k = out.shape, b.shape[0]
    a_tile = (config.block_k, config.block_m) if transposed else (config.block_m, config.block_k)
    tiles = triton.cdiv(m, config.block_m) * triton.cdiv(n, config.block_n)
    persistent_matmul[(num_programs(a.device, num_sms, config.per_sm, tiles),)](
        tile_source(a, *a_tile, tma=tma), tile_source(b, config.block_k, config.block_n, tma=tma), out, m, n, k,
        BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCK_K=config.block_k, GROUP_M=_GROUP_M,
        TRANS_A=transposed, ACCUMULATE=transposed, FLATTEN=config.flatten, TMA=tma, UPCAST=UPCAST,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
