"""What S is asked for, in one value: what all of its ways share.

Shapes: N tokens, D hidden, V rows of the shard.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import triton

from pipert.kernels.gpu.device_info import INTERPRETED, can_use_tma, device_name, has_aligned_rows
from pipert.kernels.gpu.tuning import bucket


@dataclass(frozen=True, slots=True)
class ScoreProblem:
    """The arguments of S.

    Attributes:
        x_ND: the output of the last stage, bf16.
        w_VD: the shard's rows, bf16.
        local_N: each token's target as a row of the shard, or -1.
        num_real: rows that are no padding.
        bias_V: or None.
        soft_cap: or None.
        extra: 0 for no extra sum, 1 for that of z, 2 for that of exp times z.
        out_NV: where E' goes, bf16; None where only the statistics are wanted.
    """

    x_ND: torch.Tensor
    w_VD: torch.Tensor
    local_N: torch.Tensor
    num_real: int
    bias_V: torch.Tensor | None
    soft_cap: float | None
    extra: int
    out_NV: torch.Tensor | None

    @property
    def num_tokens(self) -> int:
        """N."""
        return self.x_ND.shape[0]

    @property
    def num_sums(self) -> int:
        """How many sums each piece of a row has."""
        return 3 if self.extra else 2

    @property
    def loads(self) -> bool:
        """Whether tiles of X and W can be loaded 16 bytes at a time."""
        return has_aligned_rows(self.x_ND, self.w_VD)

    @property
    def stores(self) -> bool:
        """Whether tiles of E' can be stored so, or need not be."""
        return self.out_NV is None or has_aligned_rows(self.out_NV)

    @property
    def tma(self) -> bool:
        """Whether TMA can load the tiles of X and W."""
        return can_use_tma(self.x_ND, self.w_VD)

    @property
    def tma_out(self) -> bool:
        """Whether it can store those of E' too."""
        return self.tma and self.out_NV is not None and can_use_tma(self.out_NV)

    @property
    def cap(self) -> float:
        """The soft cap, or a number that no kernel reads."""
        return self.soft_cap or 1.0

    @property
    def bias_or_any(self) -> torch.Tensor:
        """The bias, or a tensor that no kernel reads."""
        return self.w_VD if self.bias_V is None else self.bias_V

    @property
    def flags(self) -> dict[str, Any]:
        """What the kernels are compiled for."""
        return {"BIAS": self.bias_V is not None, "CAP": self.soft_cap is not None, "EXTRA": self.extra}

    @property
    def key(self) -> str:
        """What the fastest way depends on."""
        n, (v, d) = bucket(self.num_tokens), self.w_VD.shape
        options = "".join(
            mark
            for mark, there in zip(
                "bcsxe",
                (
                    self.bias_V is not None,
                    self.soft_cap is not None,
                    self.extra == 1,
                    self.extra == 2,
                    self.out_NV is not None,
                ),
                strict=True,
            )
            if there
        )
        versions = f"torch {torch.__version__}, triton {triton.__version__}"
        return f"{device_name(self.x_ND.device)} | {versions} | score N={n} V={v} D={d} {options}"

    def rows(self, begin: int, end: int) -> ScoreProblem:
        """Return the same for some of the tokens."""
        return replace(
            self,
            x_ND=self.x_ND[begin:end],
            local_N=self.local_N[begin:end],
            out_NV=None if self.out_NV is None else self.out_NV[begin:end],
        )


#: bf16 arithmetic is wrong in the interpreter, so there every tile is made fp32 when it is loaded.
UPCAST = INTERPRETED
