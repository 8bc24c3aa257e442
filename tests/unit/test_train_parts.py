"""The model, the text, the optimizer and the checkpoints of the main job, without a pipeline."""

import itertools

import pytest
import torch

from pipert.digest import digest
from pipert.errors import ConfigError, PipertError
from pipert.numerics import Copy
from pipert.train import checkpoint
from pipert.train.config import ModelConfig, TrainConfig
from pipert.train.data import Batches
from pipert.train.digest import first_difference
from pipert.train.model import build_stage, loss_fn
from pipert.train.optim import AdamW, learning_rate, stage_parameters
from pipert.train.plans import cut, tied_parameters
from pipert.train.resume import find, read_step
from pipert.train.text import load_text

SMALL = ModelConfig(num_layers=4, dim=16, num_heads=2, seq_len=8)


def make_stages(config, num_stages, dtype=torch.float32, seed=0):
    return {s: build_stage(config, num_stages, s, seed=seed, dtype=dtype) for s in range(num_stages)}


def parameters_of(stages):
    return stage_parameters({(stage, stage): module for stage, module in stages.items()})


def run_through(stages, x):
    for stage in stages.values():
        x = stage(x)
    return x


@pytest.mark.parametrize(("positions", "tied"), list(itertools.product(("rotary", "learned"), (True, False))))
def test_any_cut_is_the_same_model(positions, tied):
    config = ModelConfig(num_layers=4, dim=16, num_heads=2, seq_len=8, positions=positions, tied=tied)
    x = torch.randint(256, (3, 8))
    whole, pieces = make_stages(config, 1), make_stages(config, 4)
    assert torch.equal(run_through(whole, x), run_through(pieces, x))
    names = {copy.name for copy in parameters_of(pieces)}
    assert names == {copy.name for copy in parameters_of(whole)}
    assert ("head.weight" in names) is not tied
    assert ("positions.weight" in names) is (positions == "learned")


def test_the_model_is_causal():
    stages = make_stages(SMALL, 2)
    x = torch.randint(256, (1, 8))
    changed = x.clone()
    changed[0, 5] = (x[0, 5] + 1) % 256
    before, after = run_through(stages, x), run_through(stages, changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5:], after[:, 5:])


def test_rotary_scores_depend_on_the_distance_only():
    from pipert.train.model import _rotary_table, _rotate

    cos, sin = _rotary_table(16, 8)
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)
    q_T8, k_T8 = _rotate(q.expand(1, 1, 16, 8), cos, sin)[0, 0], _rotate(k.expand(1, 1, 16, 8), cos, sin)[0, 0]
    scores = q_T8 @ k_T8.T
    torch.testing.assert_close(scores.diagonal(-3), scores[3, 0].expand(13))
    assert (scores[3, 0] - scores[0, 0]).abs() > 1e-4


def test_tied_copies_start_equal():
    stages = make_stages(SMALL, 4)
    ((first, first_name), (last, last_name)) = tied_parameters(SMALL, 4)[0]
    assert torch.equal(stages[first].get_parameter(first_name), stages[last].get_parameter(last_name))
    assert tied_parameters(SMALL, 1) == ()


def test_every_stage_has_layers():
    assert cut(4, 2) == [range(2), range(2, 4)]
    assert cut(11, 4) == [range(3), range(3, 6), range(6, 9), range(9, 11)]
    with pytest.raises(ConfigError, match="7 layers do not make 8 stages; --layers 8"):
        cut(7, 8)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"ranks": 0}, "ranks must be at least 1, not 0"),
        ({"steps": -1}, "steps"),
        ({"lr": float("nan")}, "lr must be a positive number"),
        ({"dtype": "fp8"}, "'fp32' or 'bf16'"),
        ({"timed": "F=1", "verify": True}, "--timed trains nothing"),
        ({"batch_weight_grads": True, "verify": True}, "--verify compares bits"),
        ({"name": "../x"}, "--name"),
        ({"save_every": 3}, "--save DIR"),
    ],
)
def test_config_refuses(change, text):
    with pytest.raises(ConfigError, match=text):
        TrainConfig(**change)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"num_heads": 3}, "dim 128 does not divide into 3 heads"),
        ({"dim": 12, "num_heads": 4}, "odd"),
        ({"positions": "none"}, "'rotary' or 'learned'"),
    ],
)
def test_model_config_refuses(change, text):
    with pytest.raises(ConfigError, match=text):
        ModelConfig(**change)


def test_default_text_is_python():
    text = load_text(None)
    assert len(text.content) > 1_000_000
    assert b"import os" in text.content


def test_batches_come_from_seed_and_step(tmp_path):
    (tmp_path / "b.txt").write_bytes(bytes(range(256)))
    (tmp_path / "a.txt").write_bytes(b"first")
    (tmp_path / ".hidden").write_bytes(b"never")
    text = load_text(tmp_path)
    assert text.content[:7] == b"first\x00\x01"
    batches = Batches(text, 4, 8, seed=1)
    x, y = batches(3)
    again = batches(3)
    assert torch.equal(x, again[0])
    assert torch.equal(y, again[1])
    assert torch.equal(x[:, 1:], y[:, :-1])
    assert not torch.equal(x, batches(4)[0])
    assert not torch.equal(x, Batches(text, 4, 8, seed=2)(3)[0])


def test_bad_text(tmp_path):
    with pytest.raises(ConfigError, match="missing cannot be read: No such file"):
        load_text(tmp_path / "missing")
    with pytest.raises(ConfigError, match="holds no text"):
        load_text(tmp_path)
    (tmp_path / "short").write_bytes(b"too short")
    with pytest.raises(ConfigError, match="9 bytes, one batch needs 33"):
        Batches(load_text(tmp_path), 4, 8, seed=0)
    (tmp_path / "broken").symlink_to(tmp_path / "gone")
    with pytest.raises(ConfigError, match=r"broken cannot be read"):
        load_text(tmp_path)


def test_learning_rate():
    rates = [learning_rate(TrainConfig(lr=1.0, warmup=4, steps=20), step) for step in range(21)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[20] == pytest.approx(0.1)


def test_bf16_keeps_fp32_masters_and_main_gradients():
    parameter = torch.nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))
    optimizer = AdamW({(0, "w"): parameter}, lr=1e-4)
    for _ in range(3):
        parameter.main_grad = torch.full((4, 4), 1e-3)
        optimizer.step()
        optimizer.zero_grad()
    assert getattr(parameter, "main_grad", None) is None
    master = optimizer.masters[0, "w"]
    assert master.dtype == torch.float32
    assert (master < 1 - 2e-4).all()  # three steps of 1e-4 that bf16 alone would each round away
    assert torch.equal(parameter.detach(), master.bfloat16())


def train(stages, optimizer, steps):
    for step in steps:
        torch.manual_seed(step)
        x = torch.randint(256, (2, 9))
        loss_fn(run_through(stages, x[:, :-1]), x[:, 1:]).backward()
        if optimizer.model_parameters.get((3, 3, "embed.weight")) is not None:  # tied copies share one gradient
            first, last = stages[0].embed.weight, stages[3].embed.weight
            first.grad = last.grad = first.grad + last.grad
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resume_with_another_cut_continues_exactly(tmp_path, dtype):
    stages = make_stages(SMALL, 4, dtype)
    optimizer = AdamW(parameters_of(stages), lr=1e-2)
    train(stages, optimizer, range(3))
    checkpoint.save(tmp_path, 3, optimizer, {"dim": 16}, {})
    saved = find(tmp_path)
    assert saved.name == "step-000003"
    assert read_step(saved, {"dim": 16}) == 3

    again = make_stages(SMALL, 4, dtype, seed=99)
    resumed = AdamW(parameters_of(again), lr=1e-2)
    checkpoint.load(saved, resumed, {})
    whole = make_stages(SMALL, 1, dtype, seed=98)
    checkpoint.load(saved, AdamW(parameters_of(whole), lr=1e-2), {})
    x = torch.randint(256, (2, 8))
    assert torch.equal(run_through(whole, x), run_through(stages, x))

    train(stages, optimizer, range(3, 5))
    train(again, resumed, range(3, 5))
    for key, parameter in parameters_of(stages).items():
        assert torch.equal(parameter, resumed.model_parameters[key]), key
        assert torch.equal(optimizer.masters[key], resumed.masters[key]), key


def test_saving_twice_and_bad_checkpoints(tmp_path):
    stages = make_stages(SMALL, 1)
    optimizer = AdamW(parameters_of(stages), lr=1e-2)
    with pytest.raises(ConfigError, match="no checkpoint there"):
        find(tmp_path)
    for _ in range(2):
        checkpoint.save(tmp_path, 10, optimizer, {"dim": 16}, {})
    saved = checkpoint.save(tmp_path, 9, optimizer, {"dim": 16}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000009", "step-000010"]
    assert find(tmp_path).name == "step-000010"
    with pytest.raises(ConfigError, match="made with dim 16, this run has 32"):
        read_step(saved, {"dim": 32})
    (saved / "pipert.json").write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        read_step(saved, {})
    for file in (".metadata", "__0_0.distcp"):
        damaged = checkpoint.save(tmp_path, 11, optimizer, {}, {})
        (damaged / file).write_bytes((damaged / file).read_bytes()[:100])
        with pytest.raises(ConfigError, match="step-000011 cannot be read"):
            checkpoint.load(damaged, optimizer, {})
    other = make_stages(ModelConfig(num_layers=4, dim=16, num_heads=2, seq_len=8, tied=False), 1)
    with pytest.raises(ConfigError, match="cannot be read"):
        checkpoint.load(find(tmp_path), AdamW(parameters_of(other), lr=1e-2), {})


def test_a_save_that_dies_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    from torch.distributed.checkpoint import state_dict_saver

    stages = make_stages(SMALL, 1)
    optimizer = AdamW(parameters_of(stages), lr=1e-2)
    checkpoint.save(tmp_path, 1, optimizer, {}, {})
    monkeypatch.setattr(state_dict_saver, "save", lambda *args, **kwargs: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(PipertError, match="step-000002 cannot be written: disk full"):
        checkpoint.save(tmp_path, 2, optimizer, {}, {})
    assert find(tmp_path).name == "step-000001"
    checkpoint.load(find(tmp_path), optimizer, {})


def test_digests_tell_bits_types_and_shapes_apart():
    zeros = torch.zeros(4)
    different = [zeros, -zeros, zeros.view(2, 2), zeros.int(), torch.zeros(2, dtype=torch.float64), zeros[:0], None]
    assert len({digest(tensor) for tensor in different}) == len(different)
    assert digest(torch.arange(6).view(2, 3).T) == digest(torch.tensor([[0, 3], [1, 4], [2, 5]]))
    a, b = Copy(1, 0, "a"), Copy(0, 1, "b")
    ours = {b: b"1", a: b"2"}
    assert first_difference(ours, dict(ours)) is None
    assert first_difference(ours, {a: b"3", b: b"4"}) == "a (stage 0 on rank 1)"
    assert first_difference(ours, {a: b"2"}) == "b (stage 1 on rank 0)"
