"""The training script with Megatron's own schedules: it is what the drop-in is measured against."""

import math

import pytest
import torch
from script_runs import differences, needs_megatron, run

pytestmark = needs_megatron

PP4 = ("--pipeline-model-parallel-size", "4")
PP2 = ("--pipeline-model-parallel-size", "2")
UNTIED = "--untie-embeddings-and-output-weights"


@pytest.mark.parametrize(
    "arguments",
    [
        (*PP4,),
        (*PP4, UNTIED),
        (*PP4, "--num-experts", "2"),
        (*PP4, "--variable-seq-lengths"),
        (*PP2,),
        (*PP2, "--tensor-model-parallel-size", "2"),
        (*PP2, "--virtual-pipeline-model-parallel-size", "2"),
    ],
    ids=" ".join,
)
def test_the_loss_falls(arguments):
    losses = run(*arguments).losses
    assert len(losses) == 5
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0] - 0.1


def test_torchrun_and_forked_ranks_compute_the_same():
    assert not differences(run(*PP4, torchrun=True), run(*PP4))


def test_evaluation_between_steps_changes_no_step():
    evaluated = run(*PP4, "--eval-interval", "2", "--eval-iters", "2")
    assert evaluated.output.count("validation loss at iteration") == 2
    assert not differences(run(*PP4), evaluated)


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_the_number_of_stages_does_not_change_the_model(num_ranks):
    whole = run("--pipeline-model-parallel-size", num_ranks, UNTIED, num_ranks=num_ranks)
    found = differences(whole, run(*PP4, UNTIED))
    assert max((each.norm for each in found), default=0.0) < 1e-4


def test_virtual_stages_change_no_bit_of_the_first_gradients():
    def first(result):
        return {where: value for where, value in result.dumps.items() if where[0] == 1}

    plain = first(run(*PP2))
    interleaved = first(run(*PP2, "--virtual-pipeline-model-parallel-size", "2"))
    assert plain.keys() == interleaved.keys()
    assert all(torch.equal(value, interleaved[where]) for where, value in plain.items())


def test_dropout_is_the_same_in_every_run():
    arguments = (*PP4, "--attention-dropout", "0.1", "--hidden-dropout", "0.1")
    assert not differences(run(*arguments), run(*arguments, torchrun=True))
    assert differences(run(*arguments), run(*PP4))
