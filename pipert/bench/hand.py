"""The loop that one would write by hand: one process, the model cut into stages, nothing else."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from pipert.bench.models import Workload


class Loop:
    """Runs one microbatch after the other, forward and backward, stage by stage.

    With ``split`` each stage's backward is its input gradient and then its weight gradient; for stages of one layer
    that computes nothing twice. ``backward_seconds`` lists the time of each backward.
    """

    def __init__(self, work: Workload, num_microbatches: int, *, split: bool) -> None:
        self._stages = list(work.stages.values())
        self._parameters = [list(stage.parameters()) for stage in self._stages]
        self._work = work
        self._num_microbatches = num_microbatches
        self._backward = self._split_backward if split else self._full_backward
        self.backward_seconds: list[float] = []

    def step(self) -> None:
        """Run one step; the gradients are added to the parameters'."""
        inputs = self._work.inputs.chunk(self._num_microbatches)
        targets = self._work.targets.chunk(self._num_microbatches)
        for x, target in zip(inputs, targets, strict=True):
            kept = self._forward(x, target)
            start = time.perf_counter()
            self._backward(kept)
            self.backward_seconds.append(time.perf_counter() - start)

    def _forward(self, x: Tensor, target: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return each stage's input (a leaf) and output (of the last stage the loss)."""
        kept = []
        for number, stage in enumerate(self._stages):
            if number:
                x = x.detach().requires_grad_()
            output = stage(x)
            if number == len(self._stages) - 1:
                output = self._work.loss_fn(output, target)
            kept.append((x, output))
            x = output
        return kept

    def _full_backward(self, kept: list[tuple[Tensor, Tensor]]) -> None:
        grad = None
        for x, output in reversed(kept):
            torch.autograd.backward(output, grad)
            grad = x.grad

    def _split_backward(self, kept: list[tuple[Tensor, Tensor]]) -> None:
        grad = None
        for parameters, (x, output) in zip(reversed(self._parameters), reversed(kept), strict=True):
            input_grad = None
            if x.requires_grad:
                (input_grad,) = torch.autograd.grad(output, x, grad, retain_graph=True)
            torch.autograd.backward(output, grad, inputs=parameters)
            grad = input_grad
