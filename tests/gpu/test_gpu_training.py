"""Several steps on one GPU, all ranks in one process: what a run of the reference with an optimizer computes."""

import copy

import post_validation_run as runs
import pytest
import torch
from pipelines import assert_same_bits, gradients, pipeline
from torch import nn

import pipert
from pipert import passes, schedules
from pipert.numerics import clear_gradients

pytestmark = pytest.mark.gpu

CLIP_NORM = 0.05
WIDTH = 48


def adamw(modules):
    return torch.optim.AdamW([p for module in modules.values() for p in module.parameters()], lr=0.01)


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved", "zb-v", "dualpipe", "two-way"])
@pytest.mark.parametrize("case", ["skip", "tied"])
def test_steps_that_grow_shrink_and_accumulate(device, schedule, case):
    pipe = pipeline(case, schedule, 4, device=device)
    modules, reference = pipe.copies(), pipe.copies()
    ours, theirs = adamw(modules), adamw(reference)
    num_tokens = 0
    with pipert.Engine(
        pipe.plan, modules, pipe.loss_fn, optimizer=ours, clip_norm=CLIP_NORM, tied=pipe.tied, seed=5
    ) as engine:
        for step, size in enumerate((1, 40, 3, 40, 1, 7)):
            turn = step % len(pipe.inputs)
            inputs = [x.repeat(size, 1) for x in pipe.inputs[turn:] + pipe.inputs[:turn]]
            targets = [y.repeat(size, 1) for y in pipe.targets[turn:] + pipe.targets[:turn]]
            accumulate = step % 3 == 0
            result = engine.step(inputs, targets, accumulate=accumulate)
            options = {"tied": pipe.tied, "seed": 5, "step": step, "accumulate": accumulate, "num_tokens": num_tokens}
            expected = pipert.reference_step(
                pipe.plan, reference, inputs, targets, pipe.loss_fn, clip_norm=CLIP_NORM, **options
            )
            num_tokens = expected.num_tokens
            assert torch.equal(result.losses, expected.losses)
            if accumulate:
                assert result.grad_norm is None
                assert_same_bits(gradients(modules), gradients(reference))
            else:
                assert torch.equal(result.grad_norm, expected.grad_norm)
                assert result.grad_norm > CLIP_NORM
                theirs.step()
                theirs.zero_grad()
                num_tokens = 0
            evaluated = engine.eval_step(inputs, targets)
            assert torch.equal(evaluated.losses, losses_of(pipe, reference, inputs, targets))
    for replica, module in modules.items():
        assert_same_bits(module.state_dict(), reference[replica].state_dict())


@torch.no_grad()
def losses_of(pipe, modules, inputs, targets):
    losses = []
    for microbatch, (x, target) in enumerate(zip(inputs, targets, strict=True)):
        hidden = (x,)
        for stage in range(pipe.plan.num_stages):
            hidden = modules[pipe.plan.rank_of_stage(stage, microbatch), stage](*hidden)
            hidden = hidden if isinstance(hidden, tuple) else (hidden,)
        losses.append(pipe.loss_fn(*hidden, target))
    return torch.stack(losses)


def block(stage):
    torch.manual_seed(stage)
    layers = [nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Dropout(0.2), nn.Linear(2 * WIDTH, WIDTH)]
    return nn.Sequential(*layers)


def mean_error(output, target):
    return (output.float() - target).square().mean()


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("schedule", ["1f1b", "zb-h1", "zb-v"])
def test_bf16_with_main_grads_and_dropout(device, schedule, recompute):
    program = schedules.build(schedule, num_ranks=3, num_microbatches=5)
    if recompute:
        program = passes.recompute(program, range(program.num_stages))
    plan = pipert.compile(program)
    modules = {stage: block(stage).to(device, torch.bfloat16) for stage in range(plan.num_stages)}
    reference = copy.deepcopy(modules)
    stages = {
        stage: pipert.Stage(module, recompute=recompute, main_grad_dtype=torch.float32)
        for stage, module in modules.items()
    }
    torch.manual_seed(0)
    inputs = torch.randn(20, 7, WIDTH, device=device, dtype=torch.bfloat16)
    targets = torch.randn(20, 7, WIDTH, device=device)
    with pipert.Engine(plan, stages, mean_error, seed=2) as engine:
        for step in range(3):
            result = engine.step(inputs, targets)
            options = {"seed": 2, "step": step, "main_grad_dtype": torch.float32}
            expected = pipert.reference_step(plan, reference, inputs, targets, mean_error, **options)
            assert torch.equal(result.losses, expected.losses)
            assert_same_bits(main_grads(modules), main_grads(reference))
            if step == 1:
                for module in (*modules.values(), *reference.values()):
                    clear_gradients(module.parameters())


def main_grads(modules):
    found = {(stage, name): p.main_grad for stage in modules for name, p in modules[stage].named_parameters()}
    assert all(grad.dtype == torch.float32 for grad in found.values())
    return found


@pytest.mark.parametrize("schedule", ["1f1b", "zb-v", "interleaved"])
def test_post_validation_changes_no_bit(device, schedule):
    made = runs.program(schedule, 3)
    expected, expected_losses = runs.train(made, device=device)
    modules, losses = runs.train(passes.post_validation(made), device=device)
    assert losses == expected_losses
    assert runs.reruns(modules)[0] > 0
    for stage, module in modules.items():
        assert_same_bits(module.state_dict(), expected[stage].state_dict())


def test_the_callers_random_state_is_left_alone(device):
    pipe = pipeline("dropout", "zb-v", 2, device=device)
    torch.manual_seed(9)
    expected = torch.randn(8, device=device)
    torch.manual_seed(9)
    with pipert.Engine(pipe.plan, pipe.copies(), pipe.loss_fn) as engine:
        engine.step(pipe.inputs, pipe.targets)
    assert torch.equal(torch.randn(8, device=device), expected)
