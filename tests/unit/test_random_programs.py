"""Random programs: any placement, paths, order, split and pairs. What can run is accepted, and computes right.

By default some hundreds; ``PIPERT_RANDOM_PROGRAMS=10000`` (as ``make bars`` sets it) runs that many.
"""

from __future__ import annotations

import os
import random

import pytest
import torch
from program_judge import stuck_with_rendezvous
from random_plans import pair_up, random_program
from torch import nn

import pipert
from pipert import PlanError

COUNT = int(os.environ.get("PIPERT_RANDOM_PROGRAMS", "250"))
"""How many programs that can run; those that cannot are judged along the way."""


class Affine(nn.Module):
    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())

    def forward(self, x):
        return x @ self.weight + self.bias


def make_modules(plan, values):
    """One module for each (rank, stage); replicas start alike."""
    return {(rank, stage): Affine(*values[stage]) for rank in range(plan.num_ranks) for stage in plan.chunks(rank)}


def squared_error(output, target):
    return (output - target).square().sum()


def check_step(plan, values, inputs, targets):
    """One step, all ranks in this process, equals the reference bit for bit."""
    modules, expected = make_modules(plan, values), make_modules(plan, values)
    reference = pipert.reference_step(plan, expected, inputs, targets, squared_error)
    with pipert.Engine(plan, modules, squared_error) as engine:
        result = engine.step(inputs, targets)
    assert torch.equal(result.losses, reference.losses)
    for key, module in modules.items():
        for ours, theirs in zip(module.parameters(), expected[key].parameters(), strict=True):
            assert torch.equal(ours.grad, theirs.grad), key


@pytest.mark.timeout(3600)
def test_what_can_run_is_accepted_and_equals_the_reference():
    rng = random.Random(20)
    torch.manual_seed(20)
    values = [(torch.randn(2, 2), torch.randn(2)) for _ in range(8)]
    inputs, targets = torch.randn(5, 1, 2), torch.randn(5, 1, 2)
    num_run = num_refused = num_pairs = num_replicas = 0
    while num_run < COUNT:
        program = pair_up(rng, random_program(rng))
        recv_depth = rng.randint(1, 3)
        if stuck_with_rendezvous(program, recv_depth):
            num_refused += 1
            with pytest.raises(PlanError, match=r"deadlock|from an earlier op"):
                pipert.compile(program, recv_depth=recv_depth)
            continue
        plan = pipert.compile(program, recv_depth=recv_depth)
        m = plan.num_microbatches
        check_step(plan, values, list(inputs[:m]), list(targets[:m]))
        num_run += 1
        num_pairs += any(op.parts for op in plan.ops)
        num_replicas += any(len(plan.holders(stage)) > 1 for stage in range(plan.num_stages))
    assert min(num_refused, num_pairs, num_replicas) > COUNT // 20
