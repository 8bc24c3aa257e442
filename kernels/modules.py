"""The output layer and its loss as a module."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import nn

from pipert.errors import ConfigError
from pipert.kernels.linear_cross_entropy import Reduction, layer_settings, loss
from pipert.kernels.loss_options import LossOptions
from pipert.kernels.vocab_shard import VocabShard


class VocabParallelLinearCrossEntropy(nn.Module):
    """A linear layer onto a vocabulary and the cross entropy over it, split over a group's ranks by vocabulary.

    >>> layer = VocabParallelLinearCrossEntropy(4096, 128256, process_group=group, dtype=torch.bfloat16)
    >>> loss = layer(x, targets)        # x [..., 4096] and targets [...], the same on all ranks of the group

    The logits of the whole vocabulary never exist. See
    :func:`~pipert.kernels.linear_cross_entropy.vocab_parallel_linear_cross_entropy` for precision, communication,
    memory and errors.

    Args:
        hidden_size: D.
        vocab_size: real rows of the whole vocabulary; it is padded to a multiple of twice the group's size.
        process_group: its rank r holds shard r; None: this process holds all.
        bias: whether the layer has one.
        options: what the loss has beside the plain cross entropy.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``.
        max_workspace_bytes: a bound on what is allocated beside results, or None to keep ``E'`` until the backward.
        num_sms: how many SMs of a GPU the kernels may take; None for all.
        device, dtype: of the parameters.

    Attributes:
        weight: ``[shard.size, D]``, initialised as nn.Linear's (each rank on its own); padded rows are 0. Its
            ``main_grad``, fp32 of the same shape, is added to where it is there.
        bias: ``[shard.size]`` or None; the same.
        shard: which rows of the vocabulary these are.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        hidden_size: int,
        vocab_size: int,
        *,
        process_group: dist.ProcessGroup | None = None,
        bias: bool = False,
        options: LossOptions = LossOptions(),
        reduction: Reduction = "mean",
        max_workspace_bytes: int | None = None,
        num_sms: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if hidden_size < 1:
            raise ConfigError(f"hidden_size must be at least 1, not {hidden_size}")
        place = (1, 0) if process_group is None else (process_group.size(), process_group.rank())
        self.shard = VocabShard(vocab_size, *place)
        self.reduction: Reduction = reduction
        self._settings = layer_settings(self.shard, process_group, options, max_workspace_bytes, num_sms)
        self.weight = nn.Parameter(torch.empty(self.shard.size, hidden_size, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(self.shard.size, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the parameters as nn.Linear does: uniformly within ``1 / sqrt(D)``."""
        bound = 1 / math.sqrt(self.weight.shape[1])
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.uniform_(-bound, bound)[self.shard.num_real :] = 0

    @torch.no_grad()
    def load_full(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        """Take this shard's rows of an unsplit layer's ``[vocab_size, D]`` weight, and of its bias.

        Raises:
            ConfigError: sizes differ, or only one of the two has a bias.
        """
        shape = (self.shard.vocab_size, self.weight.shape[1])
        if weight.shape != shape:
            raise ConfigError(f"the unsplit weight must be {list(shape)}, not {list(weight.shape)}")
        if (bias is None) != (self.bias is None) or (bias is not None and bias.shape != shape[:1]):
            raise ConfigError(f"the unsplit bias must be {'absent' if self.bias is None else list(shape[:1])}")
        rows = slice(self.shard.start, self.shard.start + self.shard.num_real)
        self.weight[: self.shard.num_real] = weight[rows]
        if bias is not None and self.bias is not None:
            self.bias[: self.shard.num_real] = bias[rows]

    def forward(
        self, x: torch.Tensor, targets: torch.Tensor, token_weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the loss: a number, or ``[...]`` for ``"none"``.

        Args:
            x: ``[..., D]`` in the weight's dtype, the same on all ranks of the group.
            targets: ``[...]``, rows of the whole vocabulary.
            token_weights: ``[...]``, what each token's loss is multiplied by.
        """
        return loss(x, self.weight, self.bias, targets, token_weights, self._settings, self.reduction)

    def extra_repr(self) -> str:
        """Return the sizes."""
        shard = self.shard
        sizes = f"hidden_size={self.weight.shape[1]}, vocab_size={shard.vocab_size}"
        return f"{sizes}, shard {shard.index} of {shard.num_shards}"
