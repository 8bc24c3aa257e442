"""Pipert's side: the passes of one shard of an output layer, by algorithm 2.

Shapes: N tokens, D hidden, V rows of the shard, p shards, K statistics.
"""

from __future__ import annotations

import torch

from pipert.bench.vocab.batch import Batch
from pipert.bench.vocab.exact import Result
from pipert.kernels.linear_cross_entropy import vocab_parallel_linear_cross_entropy
from pipert.kernels.loss_options import LossOptions
from pipert.kernels.output_shard import OutputShard, ScoreState
from pipert.kernels.statistics import RowStatistics


def bounded_loss(batch: Batch, max_workspace_bytes: int, x_ND: torch.Tensor, w_VD: torch.Tensor) -> torch.Tensor:
    """Return the mean loss of an unsplit layer by the differentiable function, which then works in chunks of tokens."""
    return vocab_parallel_linear_cross_entropy(
        x_ND,
        w_VD,
        batch.targets_N,
        shard=batch.shard,
        options=LossOptions(soft_cap=batch.soft_cap),
        max_workspace_bytes=max_workspace_bytes,
    )


class Ours:
    """One shard, which adds to an fp32 ``main_grad``; the statistics of the others are like its own."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._shard = OutputShard(batch.w_VD, batch.shard, LossOptions(soft_cap=batch.soft_cap))
        self._loss_grad_N = torch.full_like(batch.targets_N, 1 / len(batch.targets_N), dtype=torch.float32)
        self._parts_pKN: torch.Tensor | None = None
        self.main_grad_VD = torch.zeros_like(batch.w_VD, dtype=torch.float32)

    def step(self) -> Result:
        """Run S, the combine that follows the shards' exchange of statistics, the input's gradient, and T."""
        state = self.score()
        everybodys = self.combined(state.statistics)
        losses_N = self._shard.losses(everybodys, self._batch.targets_N)
        late = self._shard.coefficients(state, everybodys, self._loss_grad_N)
        input_grad_ND = self._shard.input_grad(state, everybodys, self._loss_grad_N, late=late)
        self._shard.add_weight_grad(state, everybodys, self._loss_grad_N, self.main_grad_VD, late=late)
        return Result(losses_N.mean(), input_grad_ND, self.main_grad_VD)

    def score(self) -> ScoreState:
        """Run S, with the product of algorithm 2."""
        return self._shard.score(self._batch.x_ND, self._batch.targets_N, algorithm=2)

    def weight_grad(self, state: ScoreState, everybodys: RowStatistics) -> None:
        """Run T alone."""
        self._shard.add_weight_grad(state, everybodys, self._loss_grad_N, self.main_grad_VD)

    def forward(self) -> torch.Tensor:
        """Return the losses [N], without anything kept for a backward."""
        own = self._shard.statistics(self._batch.x_ND, self._batch.targets_N)
        return self._shard.losses(self.combined(own), self._batch.targets_N)

    def combined(self, own: RowStatistics) -> RowStatistics:
        """Return the statistics of all shards, as if the others had this one's first, but for the targets."""
        if self._parts_pKN is None:
            self._parts_pKN = own.packed_KN.repeat(self._batch.shard.num_shards, 1, 1)
            self._parts_pKN[1:, 2] = 0
        self._parts_pKN[0] = own.packed_KN  # what an all-gather would write
        return self._shard.combine(self._parts_pKN)
