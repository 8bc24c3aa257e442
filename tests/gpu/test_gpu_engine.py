"""The engine on a machine with a GPU: what it refuses there, and that its torch gives the bits that it promises."""

import copy

import pytest
import torch
from torch import nn

import pipert
from pipert.errors import ConfigError

pytestmark = pytest.mark.gpu


def make_plan(schedule, num_ranks=2):
    return pipert.compile(pipert.schedules.build(schedule, num_ranks=num_ranks, num_microbatches=4))


def test_stages_on_the_gpu_are_refused_by_name():
    stages = {0: nn.Linear(4, 4), 1: nn.Linear(4, 4, device="cuda")}
    with pytest.raises(ConfigError, match=r"stage 1: weight is on cuda:0"):
        pipert.Engine(make_plan("1f1b"), stages, nn.functional.mse_loss)


def test_inputs_on_the_gpu_are_refused_by_name():
    stages = {0: nn.Linear(4, 4), 1: nn.Linear(4, 4)}
    with (
        pipert.Engine(make_plan("1f1b"), stages, nn.functional.mse_loss) as engine,
        pytest.raises(ConfigError, match="cuda:0"),
    ):
        engine.step(torch.randn(8, 4, device="cuda"), torch.randn(8, 4))


@pytest.mark.parametrize("schedule", ["1f1b", "zb-v"])
def test_engine_equals_the_reference_with_this_torch(schedule):
    plan = make_plan(schedule)
    stages = {stage: nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.GELU()) for stage in range(plan.num_stages)}
    reference = copy.deepcopy(stages)
    inputs, targets = torch.randn(8, 4), torch.randn(8, 4)
    with pipert.Engine(plan, stages, nn.functional.mse_loss) as engine:
        result = engine.step(inputs, targets)
    expected = pipert.reference_step(plan, reference, inputs, targets, nn.functional.mse_loss)
    assert torch.equal(result.losses, expected.losses)
    for stage in stages:
        for ours, theirs in zip(stages[stage].parameters(), reference[stage].parameters(), strict=True):
            assert torch.equal(ours.grad, theirs.grad)
