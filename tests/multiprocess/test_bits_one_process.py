"""All ranks in one process: every schedule, number of ranks and kind of model gives the reference's bits."""

import pytest
import torch
from pipelines import CASES, SCHEDULES, assert_same_bits, gradients, pipeline

import pipert


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_the_references(case, schedule, num_ranks):
    pipe = pipeline(case, schedule, num_ranks)
    reference = pipe.copies()
    expected = pipert.reference_step(
        pipe.plan, reference, pipe.inputs, pipe.targets, pipe.loss_fn, tied=pipe.tied, seed=3, step=0
    )
    modules = pipe.copies()
    with pipert.Engine(pipe.plan, pipe.stages(modules), pipe.loss_fn, tied=pipe.tied, seed=3) as engine:
        result = engine.step(pipe.inputs, pipe.targets)
    assert torch.equal(result.loss, expected.loss)
    assert torch.equal(result.losses, expected.losses)
    assert_same_bits(gradients(modules), gradients(reference))


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_chain_of_plain_layers_is_what_a_plain_loop_computes(schedule, num_ranks):
    pipe = pipeline("skip", schedule, num_ranks)
    naive = pipe.copies()
    losses = []
    for x, target in zip(pipe.inputs, pipe.targets, strict=True):
        hidden = (x,)
        for stage in sorted(naive):
            hidden = naive[stage](*hidden)
            hidden = hidden if isinstance(hidden, tuple) else (hidden,)
        loss = pipe.loss_fn(*hidden, target)
        (loss / len(pipe.inputs)).backward()
        losses.append(loss.detach())
    modules = pipe.copies()
    with pipert.Engine(pipe.plan, modules, pipe.loss_fn) as engine:
        result = engine.step(pipe.inputs, pipe.targets)
    assert torch.equal(result.losses, torch.stack(losses))
    assert_same_bits(gradients(modules), gradients(naive))
