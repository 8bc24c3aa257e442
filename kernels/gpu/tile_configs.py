"""The few shapes of tiles that a matrix product is tried with, for each kind of device.

Chosen by what the compiler says of registers and shared memory (``python profiles/kernel_resources.py``): the
accumulator of 128 x 256 takes half of the registers of 8 warps, and its stages nearly all shared memory of a Hopper SM;
two programs of 128 x 128 share an SM, so that one multiplies while the other takes its tile to exp.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TileConfig:
    """How a persistent matrix product is cut.

    Attributes:
        block_m: rows of a tile.
        block_n: columns of a tile.
        block_k: what is multiplied at a time.
        num_warps: of a program.
        num_stages: of the pipeline of loads.
        flatten: one loop over tiles and steps, so that the loads of the next tile run beside the end of this one.
        per_sm: programs that share an SM.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    flatten: bool = False
    per_sm: int = 1

    def __str__(self) -> str:
        return f"{self.block_m}x{self.block_n}x{self.block_k} w{self.num_warps} s{self.num_stages}"


_WIDE = TileConfig(128, 256, 64, num_warps=8, num_stages=4, flatten=True)
_SHARING = TileConfig(128, 128, 64, num_warps=8, num_stages=3, flatten=True, per_sm=2)
_SKIPPING = TileConfig(128, 128, 64, num_warps=8, num_stages=3)
_AMPERE = TileConfig(128, 128, 32, num_warps=8, num_stages=4)
_AMPERE_WIDE = TileConfig(128, 256, 32, num_warps=8, num_stages=3)
_NARROW = TileConfig(128, 64, 32, num_warps=8, num_stages=3)
INTERPRETED = TileConfig(16, 64, 32, num_warps=1, num_stages=1)

#: Rows of a tile, in every configuration for a device: a row is done again with all others of its tile.
BLOCK_M = 128


def score_configs(major: int, *, loads: bool, stores: bool, capped: bool) -> tuple[TileConfig, ...]:
    """Return what S is tried with on a device of this compute capability, the likeliest first.

    Args:
        major: its first digit.
        loads: the rows of X and W are aligned; addresses of single elements take more registers than most tiles leave.
        stores: the rows of E' are, or it is not stored.
        capped: there is a soft cap, which takes more registers than a wide tile leaves.
    """
    if not loads:
        return (_NARROW,)
    if major < 9:
        wide = (_AMPERE,) if capped else (_AMPERE, _AMPERE_WIDE)
        return wide if stores else (_NARROW,)
    return (_WIDE, _SHARING) if stores and not capped else (_SHARING,)


def repair_config(major: int, *, loads: bool) -> TileConfig:
    """Return what S does rows again with; a loop that skips tiles cannot be flattened."""
    return _SKIPPING if major >= 9 and loads else _NARROW


def product_configs(major: int, *, loads: bool) -> tuple[TileConfig, ...]:
    """Return what the products of T are tried with; ``loads`` as for S."""
    if not loads:
        return (_NARROW,)
    return (_AMPERE,) if major < 9 else (_WIDE, _SHARING)
