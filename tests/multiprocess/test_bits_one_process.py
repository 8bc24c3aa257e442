"""All ranks in one process: every schedule, number of ranks and kind of model gives the reference's bits."""

import pytest
import torch
from pipelines import CASES, SCHEDULES, assert_same_bits, build, gradients, pipeline

import pipert
from pipert.errors import ConfigError

ON_FOUR_RANKS = [(case, schedule, 4) for case in CASES for schedule in SCHEDULES]
ON_FEWER = [
    (CASES[i % len(CASES)], schedule, num_ranks) for i, schedule in enumerate(SCHEDULES) for num_ranks in (2, 3)
]


def skip_if_it_refuses(schedule, num_ranks):
    try:
        build(schedule, num_ranks, 2 * num_ranks)
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(("case", "schedule", "num_ranks"), [*ON_FOUR_RANKS, *ON_FEWER])
def test_losses_and_gradients_are_the_references(case, schedule, num_ranks):
    if num_ranks < 4:
        skip_if_it_refuses(schedule, num_ranks)
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


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_chain_of_plain_layers_is_what_a_plain_loop_computes(schedule):
    pipe = pipeline("skip", schedule, 4)
    if len(pipe.plan.paths) > 1:
        pytest.skip("replicas are summed in an order of their own; see test_engine_replicas.py")
    naive = pipe.copies()
    losses = []
    for x, target in zip(pipe.inputs, pipe.targets, strict=True):
        hidden = (x,)
        for replica in naive:
            hidden = naive[replica](*hidden)
            hidden = hidden if isinstance(hidden, tuple) else (hidden,)
        loss = pipe.loss_fn(*hidden, target)
        (loss / len(pipe.inputs)).backward()
        losses.append(loss.detach())
    modules = pipe.copies()
    with pipert.Engine(pipe.plan, modules, pipe.loss_fn) as engine:
        result = engine.step(pipe.inputs, pipe.targets)
    assert torch.equal(result.losses, torch.stack(losses))
    assert_same_bits(gradients(modules), gradients(naive))
