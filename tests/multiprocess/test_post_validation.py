"""Post-validation changes when ranks step, and not a bit of what they compute."""

import sys
from pathlib import Path

import post_validation_run as runs
import pytest
import torch
from torch import nn

import pipert
from pipert import ConfigError, PipertError, launch, passes

SCRIPT = str(Path(__file__).parent / "rank_post_validation.py")


def assert_same(ours, theirs):
    for stage, module in ours.items():
        for name, parameter in module.named_parameters():
            assert torch.equal(parameter, theirs[stage].get_parameter(name)), (stage, name)


@pytest.mark.parametrize("schedule", ["1f1b", "zb-v", "interleaved"])
def test_all_ranks_in_one_process(schedule):
    made = runs.program(schedule, 3)
    expected, expected_losses = runs.train(made)
    modules, losses = runs.train(passes.post_validation(made))
    assert losses == expected_losses
    assert_same(modules, expected)
    assert all(again == 0 for again in runs.reruns(expected).values())
    assert runs.reruns(modules)[0] > 0  # steps were rolled back, and the forwards after them run again


def test_a_process_for_each_rank(capfd):
    assert launch.run([sys.executable, SCRIPT], 3) == 0
    assert sorted(capfd.readouterr().out.split("\n")) == ["", *(f"rank {rank} done" for rank in range(3))]


def test_a_norm_that_is_not_finite_is_found_in_the_next_step():
    made = passes.post_validation(runs.program("1f1b", 2))
    with pytest.raises(PipertError, match=r"step 2: the gradient norm is nan; no parameter was changed"):
        runs.train(made, spoil=2)


def test_what_would_be_a_meeting_of_ranks_is_refused():
    plan = pipert.compile(passes.post_validation(runs.program("1f1b", 2)))
    stages = {stage: runs.Stage(stage) for stage in range(2)}
    optimizer = torch.optim.SGD([p for stage in stages.values() for p in stage.parameters()], lr=0.1)
    loss_fn = nn.functional.mse_loss
    tied = [((0, "linear.bias"), (1, "linear.bias"))]
    with pytest.raises(ConfigError, match="tied"):
        pipert.Engine(plan, stages, loss_fn, optimizer=optimizer, tied=tied)
    with pytest.raises(ConfigError, match="token"):
        pipert.Engine(plan, stages, loss_fn, optimizer=optimizer, loss_reduction="token")
    with pytest.raises(ConfigError, match=r"undoes steps of a torch.optim.Optimizer; this engine has no optimizer"):
        pipert.Engine(plan, stages, loss_fn)
    engine = pipert.Engine(plan, stages, loss_fn, optimizer=optimizer)
    with pytest.raises(ConfigError, match="accumulate"):
        engine.step(*runs.batches(0), accumulate=True)


def test_settling_gives_the_norm_and_the_parameters_of_the_step():
    made = runs.program("1f1b", 2)
    results = []
    for program in (made, passes.post_validation(made)):
        stages = {stage: runs.Stage(stage) for stage in range(2)}
        optimizer = torch.optim.SGD([p for stage in stages.values() for p in stage.parameters()], lr=0.1)
        engine = pipert.Engine(
            pipert.compile(program), stages, nn.functional.mse_loss, optimizer=optimizer, clip_norm=0.01
        )
        norm = engine.step(*runs.batches(1)).grad_norm
        norm = engine.settle() if norm is None else norm
        assert engine.settle() is None
        results.append((norm, stages))
    (expected_norm, expected), (norm, stages) = results
    assert norm == expected_norm > 0.01
    assert_same(stages, expected)
