"""Timed stages: what they check, and that they sleep."""

import time

import pytest
import torch

from pipert.errors import ConfigError, StageError
from pipert.stages import StageProtocol, Timed
from pipert.stages.timed import sleep_until


def stages(num_stages=3, **costs):
    costs = {"F": 0, "I": 0, "W": 0, **costs}
    return [Timed(**costs, stage=stage, num_stages=num_stages) for stage in range(num_stages)]


def forward(pipeline, microbatch):
    values = (torch.zeros(1),)
    for stage in pipeline:
        values = stage.forward(microbatch, tuple(value.detach() for value in values))
    return values


def test_it_is_a_stage_and_a_pipeline_of_them_runs():
    pipeline = stages()
    assert all(isinstance(stage, StageProtocol) for stage in pipeline)
    for microbatch in (1, 0):
        outputs = forward(pipeline, microbatch)
        assert [y.requires_grad for y in outputs] == [False]
    assert [stage.activation_bytes for stage in pipeline] == [2, 2, 2]
    pipeline[2].recompute(1)
    for microbatch in (1, 0):
        grads = ()
        for stage in reversed(pipeline):
            grads = (stage.backward if microbatch else stage.input_grad)(microbatch, grads)
        assert grads == (None,)
    assert [stage.activation_bytes for stage in pipeline] == [1, 1, 1]
    for stage in pipeline:
        stage.weight_grad(0)
    assert [stage.activation_bytes for stage in pipeline] == [0, 0, 0]


def test_outputs_need_a_gradient_except_the_last():
    pipeline = stages()
    values = ()
    for stage, needs_grad in zip(pipeline, (True, True, False), strict=True):
        values = stage.forward(0, values)
        assert [value.requires_grad for value in values] == [needs_grad]


@pytest.mark.parametrize("mistake", ["other microbatch", "other stage", "other direction", "two", "none"])
def test_a_wrong_tensor_is_noticed(mistake):
    first, second, third = stages()
    right = first.forward(1, ())
    wrong = {
        "other microbatch": first.forward(0, ()),
        "other stage": third.forward(1, second.forward(1, right)),
        "other direction": third.backward(1, ()),
        "two": right + right,
        "none": (),
    }[mistake]
    second.discard()
    with pytest.raises(StageError, match=r"stage 1 must get \[\[0, 1, 0\]\]"):
        second.forward(1, wrong)


def test_a_wrong_gradient_is_noticed():
    first, second, third = stages()
    third.forward(1, second.forward(1, first.forward(1, ())))
    with pytest.raises(StageError, match=r"stage 1 must get \[\[2, 1, 1\]\].*got \[None\]"):
        second.input_grad(1, (None,))


def test_ops_out_of_turn_are_noticed():
    (stage,) = stages(1)
    for op in (lambda: stage.backward(0, ()), lambda: stage.weight_grad(0), lambda: stage.recompute(0)):
        with pytest.raises(StageError, match="microbatch 0"):
            op()
    stage.forward(0, ())
    with pytest.raises(StageError, match="second time"):
        stage.forward(0, ())
    stage.discard()
    stage.forward(0, ())


def test_forward_only_keeps_nothing():
    pipeline = stages()
    values = ()
    for stage in pipeline:
        values = stage.forward_only(0, values)
    assert [stage.activation_bytes for stage in pipeline] == [0, 0, 0]


def test_it_sleeps_what_the_op_costs():
    (stage,) = stages(1, F=4, I=6, W=8, R=2)
    begin = time.monotonic()
    stage.forward(0, ())
    stage.recompute(0)
    stage.input_grad(0, ())
    stage.weight_grad(0)
    assert time.monotonic() - begin >= 0.020
    begin = time.monotonic()
    stage.forward(1, ())
    stage.backward(1, ())
    assert time.monotonic() - begin >= 0.018


def test_a_deadline_in_the_past_does_not_sleep():
    end = time.monotonic()
    sleep_until(end - 1)
    sleep_until(end + 0.001)
    assert time.monotonic() >= end + 0.001


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"F": -1}, "cost of F is -1"),
        ({"W": float("nan")}, "cost of W is nan"),
        ({"B": float("inf")}, "cost of B is inf"),
        ({"stage": 3}, "no stage 3 among 3"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Timed(**{"F": 1, "I": 1, "W": 1, "stage": 0, "num_stages": 3, **options})


def test_microbatches_differ():
    stage = Timed(F=5, I=5, W=5, microbatch_scale=(0, 2), stage=0, num_stages=1)
    for microbatch, least_ms in ((0, 0), (1, 30)):
        start = time.monotonic()
        stage.forward(microbatch, (torch.zeros(1),))
        stage.input_grad(microbatch, ())
        stage.weight_grad(microbatch)
        assert (time.monotonic() - start) * 1000 >= least_ms
