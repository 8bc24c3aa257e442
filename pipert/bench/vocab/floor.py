"""What no output layer can be faster than: its three matrix products, by torch, with the same shapes and output types.

Shapes: N tokens, D hidden, V rows of the shard.
"""

from __future__ import annotations

import torch

from pipert.bench.vocab.batch import Batch


class Floor:
    """The products, of random data; what the first one leaves takes the place of ``E'`` in the others."""

    def __init__(self, batch: Batch) -> None:
        self._x_ND, self._w_VD = batch.x_ND, batch.w_VD
        self._main_grad_VD = torch.zeros_like(batch.w_VD, dtype=torch.float32)
        self._z_NV = batch.x_ND @ batch.w_VD.T

    def step(self) -> torch.Tensor:
        """Make all three; return the second one's, [N, D]."""
        self.logits()
        product_ND = torch.mm(self._z_NV, self._w_VD, out_dtype=torch.float32)
        self.weight_grad()
        return product_ND

    def logits(self) -> None:
        """Make the only one of a forward."""
        torch.mm(self._x_ND, self._w_VD.T, out=self._z_NV)

    def weight_grad(self) -> None:
        """Make the one of T, added to fp32."""
        total_VD = self._main_grad_VD
        torch.addmm(total_VD, self._z_NV.T, self._x_ND, out_dtype=torch.float32, out=total_VD)
