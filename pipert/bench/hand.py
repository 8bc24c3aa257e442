"""The loop that one would write by hand: one process, the model cut into stages, nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]


def forward(stages: Sequence[nn.Module], x: Tensor, target: Tensor, loss_fn: Loss) -> list[tuple[Tensor, Tensor]]:
    """Run one microbatch forward; return each stage's input (a leaf) and output (of the last stage the loss)."""
    kept = []
    for number, stage in enumerate(stages):
        if number:
            x = x.detach().requires_grad_()
        output = stage(x)
        if number == len(stages) - 1:
            output = loss_fn(output, target)
        kept.append((x, output))
        x = output
    return kept


def backward(kept: list[tuple[Tensor, Tensor]]) -> None:
    """Run one microbatch backward, stage by stage."""
    grad = None
    for x, output in reversed(kept):
        torch.autograd.backward(output, grad)
        grad = x.grad


def split_backward(stages: Sequence[nn.Module], kept: list[tuple[Tensor, Tensor]]) -> None:
    """Run one microbatch backward, stage by stage, each as input gradient and then weight gradient."""
    grad = None
    for stage, (x, output) in zip(reversed(stages), reversed(kept), strict=True):
        next_grad = None
        if x.requires_grad:
            (next_grad,) = torch.autograd.grad(output, x, grad, retain_graph=True)
        torch.autograd.backward(output, grad, inputs=list(stage.parameters()))
        grad = next_grad


def step(
    stages: Sequence[nn.Module], inputs: Tensor, targets: Tensor, num_microbatches: int, loss_fn: Loss, *, split: bool
) -> list[Tensor]:
    """Run one step, one microbatch after the other; return the losses."""
    losses = []
    for x, target in zip(inputs.chunk(num_microbatches), targets.chunk(num_microbatches), strict=True):
        kept = forward(stages, x, target, loss_fn)
        if split:
            split_backward(stages, kept)
        else:
            backward(kept)
        losses.append(kept[-1][1].detach())
    return losses
