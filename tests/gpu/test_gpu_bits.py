"""All ranks in one process on one GPU: every schedule and kind of model gives the reference's bits."""

import pytest
import torch
from pipelines import CASES, SCHEDULES, assert_same_bits, gradients, pipeline

import pipert

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_losses_and_gradients_are_the_references(device, schedule, case):
    pipe = pipeline(case, schedule, 4, device=device)
    reference = pipe.copies()
    expected = pipert.reference_step(
        pipe.plan, reference, pipe.inputs, pipe.targets, pipe.loss_fn, tied=pipe.tied, seed=3, step=0
    )
    modules = pipe.copies()
    with pipert.Engine(pipe.plan, pipe.stages(modules), pipe.loss_fn, tied=pipe.tied, seed=3) as engine:
        result = engine.step(pipe.inputs, pipe.targets)
        recorded = list(result.trace.recorded())
    assert torch.equal(result.loss, expected.loss)
    assert torch.equal(result.losses, expected.losses)
    assert_same_bits(gradients(modules), gradients(reference))
    assert recorded == list(range(pipe.plan.num_ops))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_chain_of_plain_layers_is_what_a_plain_loop_computes(device, schedule):
    pipe = pipeline("skip", schedule, 4, device=device)
    if len(pipe.plan.paths) > 1:
        pytest.skip("replicas are summed in an order of their own")
    naive = pipe.copies()
    losses = []
    for x, target in zip(pipe.inputs, pipe.targets, strict=True):
        hidden = (x,)
        for module in naive.values():
            hidden = module(*hidden)
            hidden = hidden if isinstance(hidden, tuple) else (hidden,)
        loss = pipe.loss_fn(*hidden, target)
        (loss / len(pipe.inputs)).backward()
        losses.append(loss.detach())
    modules = pipe.copies()
    with pipert.Engine(pipe.plan, modules, pipe.loss_fn) as engine:
        result = engine.step(pipe.inputs, pipe.targets)
    assert torch.equal(result.losses, torch.stack(losses))
    assert_same_bits(gradients(modules), gradients(naive))


@pytest.mark.parametrize("schedule", ["1f1b", "zb-v", "dualpipe"])
@pytest.mark.parametrize("transport", ["ipc", pytest.param("nccl", marks=pytest.mark.kernels)])
def test_over_other_transports_within_the_process(device, schedule, transport):
    pipe = pipeline("multi-output", schedule, 4, device=device)
    found = {}
    for chosen in ("local", transport):
        modules = pipe.copies()
        with pipert.Engine(pipe.plan, modules, pipe.loss_fn, transport=chosen) as engine:
            result = engine.step(pipe.inputs, pipe.targets)
        found[chosen] = {"losses": result.losses} | gradients(modules)
    assert_same_bits(found[transport], found["local"])


def test_nothing_is_recorded_without_trace(device):
    pipe = pipeline("skip", "zb-v", 4, device=device)
    modules, others = pipe.copies(), pipe.copies()
    with pipert.Engine(pipe.plan, modules, pipe.loss_fn, trace=False) as engine:
        assert engine.step(pipe.inputs, pipe.targets).records == b""
    with pipert.Engine(pipe.plan, others, pipe.loss_fn) as engine:
        engine.step(pipe.inputs, pipe.targets)
    assert_same_bits(gradients(modules), gradients(others))
