"""All of an output layer that is no tensor, in the form that a torch operator takes.

Shapes: K statistics, N tokens, D hidden, p shards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from pipert.kernels.loss_options import LossOptions
from pipert.kernels.output_shard import OutputShard
from pipert.kernels.statistics import RowStatistics
from pipert.kernels.vocab_shard import VocabShard

SCHEMA = (
    "int[] shard, int ignore_index, float label_smoothing, float z_loss, float? soft_cap, str? group, "
    "int? max_workspace_bytes, int? num_sms"
)
"""The arguments that :meth:`LayerSettings.arguments` makes, as an operator's schema has them."""

Arguments: TypeAlias = tuple[Sequence[int], int, float, float, "float | None", "str | None", "int | None", "int | None"]


@dataclass(frozen=True, slots=True)
class LayerSettings:
    """What the operators of :mod:`pipert.kernels.output_ops` need beside tensors.

    Attributes:
        shard: which rows of the vocabulary the weight holds.
        options: what the loss has beside the plain cross entropy.
        group: the name of the process group that holds the shards, in the order of its ranks; None for one shard.
        max_workspace_bytes: how much may be allocated beside results.
        num_sms: how many SMs of a GPU the kernels may take.
    """

    shard: VocabShard
    options: LossOptions = LossOptions()
    group: str | None = None
    max_workspace_bytes: int | None = None
    num_sms: int | None = None

    def arguments(self) -> Arguments:
        """Return the arguments of :data:`SCHEMA`."""
        shard, options = self.shard, self.options
        return (
            [shard.vocab_size, shard.num_shards, shard.index],
            options.ignore_index,
            options.label_smoothing,
            options.z_loss,
            options.soft_cap,
            self.group,
            self.max_workspace_bytes,
            self.num_sms,
        )

    @classmethod
    def of(cls, shard: Sequence[int], *arguments: float | str | None) -> LayerSettings:
        """Read the arguments of :data:`SCHEMA`."""
        options, others = arguments[:4], arguments[4:]
        return cls(VocabShard(*shard), LossOptions(*options), *others)  # type: ignore[arg-type]

    def layer(self, weight_VD: torch.Tensor, bias_V: torch.Tensor | None) -> OutputShard:
        """Make the shard."""
        return OutputShard(weight_VD, self.shard, self.options, bias_V, self.max_workspace_bytes, self.num_sms)

    def gather(self, layer: OutputShard, own: RowStatistics, *, weighted_extra: bool = False) -> RowStatistics:
        """Combine the statistics of all shards, of which ``layer`` is this rank's: one all-gather."""
        if self.group is None:
            return RowStatistics(own.packed_KN.clone())
        parts_pKN = own.packed_KN.new_empty(self.shard.num_shards, *own.packed_KN.shape)
        dist.all_gather_into_tensor(parts_pKN.flatten(0, 1), own.packed_KN.contiguous(), group=_group(self.group))
        return layer.combine(parts_pKN, weighted_extra=weighted_extra)

    def sum(self, grad_ND: torch.Tensor) -> torch.Tensor:
        """Sum over all shards, in place: one all-reduce."""
        if self.group is not None:
            dist.all_reduce(grad_ND, group=_group(self.group))
        return grad_ND


def _group(name: str) -> dist.ProcessGroup:
    resolve: Callable[[Any], dist.ProcessGroup] = distributed_c10d._resolve_process_group  # type: ignore[attr-defined]
    return resolve(name)
