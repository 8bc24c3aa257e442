"""Other output layers with their losses, as data: how each is imported and called, and the bars beside it.

Each computes the mean cross entropy of an unsplit layer, and its gradients in bf16 by autograd.

Shapes: N tokens, D hidden, V rows.
"""

from __future__ import annotations

import atexit
import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from pipert.bench.figure import Unavailable
from pipert.bench.vocab import rounds, wheels
from pipert.bench.vocab.batch import Batch
from pipert.bench.vocab.exact import Result

LossOf = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Side:
    """A peer on one batch: what computes it, and what it was set to."""

    step: Callable[[], Result]
    setting: str = ""


@dataclass(frozen=True, slots=True)
class Peer:
    """One way to compute the layer.

    Attributes:
        name: the package and how it is used.
        side: prepares it for a batch; raises :class:`Unavailable` where it is not there.
        soft_cap: whether it has one.
        speed_bar: how many times faster pipert is asked to be, on the shape that has bars.
        memory_bar: how much of its extra memory pipert may take there.
        bounded: whether it is made to need little memory; then pipert is measured in as much, too.
        is_measure: whether the bars of pipert's own errors are held beside it.
    """

    name: str
    side: Callable[[Batch], Side]
    soft_cap: bool = False
    speed_bar: float | None = None
    memory_bar: float | None = None
    bounded: bool = False
    is_measure: bool = False


def _module(name: str, package: str) -> Any:
    wheels.add_to_path()
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Unavailable(
            f"not installed ({error}): pip install {package}, or put its wheel into the folder that {wheels.VARIABLE} "
            f"names"
        ) from None


def by_autograd(batch: Batch, loss_of: LossOf) -> Callable[[], Result]:
    """Return what computes a loss of X and W, and its gradients."""
    x_ND, w_VD = (tensor.detach().requires_grad_() for tensor in (batch.x_ND, batch.w_VD))

    def step() -> Result:
        loss = loss_of(x_ND, w_VD)
        return Result(loss.detach(), *torch.autograd.grad(loss, (x_ND, w_VD)))

    return step


def _torch(batch: Batch) -> Side:
    def loss_of(x_ND: torch.Tensor, w_VD: torch.Tensor) -> torch.Tensor:
        z_NV = F.linear(x_ND, w_VD).float()
        if batch.soft_cap is not None:
            z_NV = batch.soft_cap * torch.tanh(z_NV / batch.soft_cap)
        return F.cross_entropy(z_NV, batch.targets_N)

    return Side(by_autograd(batch, loss_of), "linear, float(), cross_entropy")


def _torch_fused(batch: Batch) -> Side:
    if not hasattr(F, "linear_cross_entropy"):
        raise Unavailable(f"torch {torch.__version__} has no linear_cross_entropy: it came with 2.13")
    options = torch.nn.LinearCrossEntropyOptions()

    def loss_of(x_ND: torch.Tensor, w_VD: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = F.linear_cross_entropy(x_ND, w_VD, batch.targets_N, options=options)
        return loss

    return Side(by_autograd(batch, loss_of), "LinearCrossEntropyOptions()")


def _liger(batch: Batch, chunk_mem_const: int = 1) -> Side:
    module = _module("liger_kernel.ops.fused_linear_cross_entropy", "liger-kernel==0.8.5")
    function = module.LigerFusedLinearCrossEntropyFunction

    def loss_of(x_ND: torch.Tensor, w_VD: torch.Tensor) -> torch.Tensor:
        no_bias = no_class_weights = no_dtype = no_impl = no_mode = None
        flags = (False, no_dtype, False, False, False)
        options = (no_bias, no_class_weights, -100, 0.0, 0.0, "mean", batch.soft_cap, *flags)
        loss: torch.Tensor = function.apply(x_ND, w_VD, batch.targets_N, *options, no_impl, no_mode, chunk_mem_const)[0]
        return loss

    return Side(by_autograd(batch, loss_of), f"Triton, chunk_mem_const={chunk_mem_const}")


def _liger_tuned(batch: Batch) -> Side:
    """Take the fastest of the chunks up to all tokens at once: those need as much memory as ``E'``."""
    vocab_size, hidden_size = batch.w_VD.shape
    whole = -(-vocab_size // hidden_size)
    consts = [1 << power for power in range(whole.bit_length()) if 1 << power < whole] + [whole]
    sides = {str(const): _liger(batch, const) for const in consts}
    times = rounds.in_turns({name: side.step for name, side in sides.items()}, 1)
    return sides[min(times, key=lambda name: times[name])]


def _cut(batch: Batch, filter_eps: str | None) -> Side:
    function = _module("cut_cross_entropy", "cut-cross-entropy==25.1.1").linear_cross_entropy
    options = {"softcap": batch.soft_cap, "filter_eps": filter_eps}
    step = by_autograd(batch, lambda x_ND, w_VD: function(x_ND, w_VD, batch.targets_N, **options))
    return Side(step, f"filter_eps={filter_eps}")


@functools.cache
def _group_of_one(backend: str) -> Any:
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=0, world_size=1)
    atexit.register(dist.destroy_process_group)
    return dist.group.WORLD


def _megatron(batch: Batch) -> Side:
    module = _module("megatron.core.fusions.fused_cross_entropy", "megatron-core==0.16.1")
    group = _group_of_one("nccl" if batch.x_ND.is_cuda else "gloo")

    def loss_of(x_ND: torch.Tensor, w_VD: torch.Tensor) -> torch.Tensor:
        z_NbV = F.linear(x_ND, w_VD)[:, None]
        losses_Nb: torch.Tensor = module.fused_vocab_parallel_cross_entropy(z_NbV, batch.targets_N[:, None], group)
        return losses_Nb.mean()

    return Side(by_autograd(batch, loss_of), "cuBLAS, then the fused loss, a group of one")


def _quack(batch: Batch) -> Side:
    function = _module("quack.linear_cross_entropy", "quack-kernels").chunked_linear_cross_entropy
    return Side(by_autograd(batch, lambda x_ND, w_VD: function(x_ND, w_VD, batch.targets_N)), "chunked, its defaults")


PEERS = {
    "torch": Peer("torch", _torch, soft_cap=True, is_measure=True),
    "liger": Peer("liger-kernel", _liger, soft_cap=True, speed_bar=4.0, bounded=True),
    "liger_tuned": Peer("liger-kernel tuned", _liger_tuned, soft_cap=True, speed_bar=1.2),
    "cut_cross_entropy": Peer(
        "cut-cross-entropy unfiltered", functools.partial(_cut, filter_eps=None), soft_cap=True, speed_bar=2.5
    ),
    "cut_cross_entropy_filtered": Peer("cut-cross-entropy", functools.partial(_cut, filter_eps="high"), soft_cap=True),
    "megatron_core": Peer("Megatron-core", _megatron, speed_bar=1.2, memory_bar=1 / 3),
    "quack": Peer("quack-kernels", _quack, bounded=True),
    "torch_linear_cross_entropy": Peer("torch linear_cross_entropy", _torch_fused, bounded=True),
}
"""By the name of the part that measures them."""
