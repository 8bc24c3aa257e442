"""Modules that torch's fully sharded data parallel (FSDP2, ``fully_shard``) holds in shards, driven by a plan.

Left alone, such a module gathers its parameters before every forward and reduces its gradients in every backward. The
plan's UNSHARD, RESHARD and REDUCE_GRAD say when instead; from the first UNSHARD on the module leaves it to them.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from torch import Tensor, nn


def is_sharded(module: nn.Module) -> bool:
    """Whether ``fully_shard`` was called on ``module``."""
    return callable(getattr(module, "unshard", None)) and callable(getattr(module, "reshard", None))


def unshard(module: nn.Module) -> None:
    """Gather the parameters, to stay until :func:`reshard`; gradients add up unreduced until :func:`reduce_grad`."""
    sharded = cast(Any, module)
    sharded.set_is_last_backward(False)
    sharded.set_reshard_after_forward(False)
    sharded.set_reshard_after_backward(False)
    sharded.set_requires_gradient_sync(False)
    sharded.unshard()


def reshard(module: nn.Module) -> None:
    """Let the gathered parameters go."""
    cast(Any, module).reshard()


def reduce_grad(module: nn.Module) -> None:
    """Sum the gradients over the data-parallel ranks, each of which keeps its shard."""
    from torch.distributed.pipelining.stage import _PipelineStageBase

    # What torch's own pipeline runtime does for this op; it has no public name.
    _PipelineStageBase.perform_reduce_grad(cast(Any, SimpleNamespace(submod=module)), 1)


def local(tensor: Tensor) -> Tensor:
    """Return the shard of a sharded tensor that lies here, any other tensor itself."""
    return cast(Any, tensor).to_local() if hasattr(tensor, "to_local") else tensor
