"""The main job with all ranks in this process: what it predicts, and how it says that something is not right."""

import contextlib
import json

import pytest
import torch
from rich.console import Console

import pipert
from pipert.errors import ConfigError, PipertError, StageError
from pipert.numerics import Copy
from pipert.sim import Costs, StageCosts
from pipert.train import job, training
from pipert.train.config import ModelConfig, TrainConfig
from pipert.train.predict import measured_costs, predict
from pipert.train.verify import Reference, StepBits, compare, compare_parameters

SMALL = ModelConfig(num_layers=4, dim=16, num_heads=2, seq_len=8)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    (tmp_path / "text").write_bytes(bytes(range(256)) * 4)

    def run(**options):
        console = Console(record=True, width=100)
        config = TrainConfig(
            model=SMALL, ranks=2, microbatches=4, steps=3, data=tmp_path / "text", runs=tmp_path, name="run", **options
        )
        try:
            job.run(config, one_process=True, console=console)
        finally:
            run.text = console.export_text()
        return json.loads((tmp_path / "run" / "summary.json").read_text())

    return run


def test_any_schedule_and_rank_count_has_the_same_losses(run):
    losses = run(schedule="gpipe")["losses"]
    assert losses[-1] != losses[0]
    assert run(schedule="interleaved")["losses"] == losses
    summary = run(schedule="zb-v", recompute=True)
    assert summary["losses"] == losses
    assert summary["bitwise_equal"] is None
    assert summary["predicted_step_time_ms"] > 0
    assert summary["tokens_per_second"] > 0
    assert "one after another" in run.text


def test_batched_weight_gradients_train_as_well(run):
    exact = run(schedule="zb-h1")["losses"]
    assert run(schedule="zb-h1", batch_weight_grads=True)["losses"] == pytest.approx(exact, rel=1e-5)


def test_timed_stages_cost_what_a_file_says(run, tmp_path):
    (tmp_path / "costs.toml").write_text(
        """
        rank_speed = [1, 2]
        [[stage]]
        F = 1
        I = 2
        W = 3
        [[stage]]
        F = 10
        I = 20
        W = 30
        microbatch_scale = [1, 2, 0, 1]
        """
    )
    with contextlib.suppress(PipertError):  # the machine may be too busy to keep the tolerance
        run(schedule="zb-h1", timed=str(tmp_path / "costs.toml"))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["predicted_step_time_ms"] == pytest.approx(4 * (1 + 2 + 3) + 4 * (10 + 20 + 30) / 2)
    assert summary["step_time_ms"] >= summary["predicted_step_time_ms"]


def test_timed_stages_cannot_overlap(run, tmp_path):
    (tmp_path / "costs.toml").write_text("F = 1\nI = 1\nW = 1\noverlap = 0.8")
    with pytest.raises(ConfigError, match="leave out overlap"):
        run(timed=str(tmp_path / "costs.toml"))


def test_a_single_wrong_bit_ends_the_run_and_is_named(run, monkeypatch, tmp_path):
    honest = Reference.step

    def with_a_wrong_bit(self, step):
        bits = honest(self, step)
        if step == 1:
            bits.gradients[Copy(0, 2, "layers.2.mlp.up.weight")] = b"something else"
        return bits

    monkeypatch.setattr(Reference, "step", with_a_wrong_bit)
    with pytest.raises(
        PipertError, match=r"step 1: the gradient of layers\.2\.mlp\.up\.weight \(stage 2 on rank 0\) differs"
    ):
        run(verify=True)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["bitwise_equal"] is False


def test_parameters_are_compared_at_the_end(run, monkeypatch):
    monkeypatch.setattr(training, "parameter_digests", lambda parameters: dict.fromkeys(parameters, b"wrong"))
    with pytest.raises(PipertError, match=r"after the last step, embed\.weight \(stage 0 on rank 0\) differs"):
        run(verify=True)


def test_compare():
    bits = StepBits((1.0, 2.0), 3.0, {Copy(0, 0, "w"): b"a", Copy(1, 1, "w"): b"b"})
    first, second = StepBits((), 3.0, {Copy(0, 0, "w"): b"a"}), StepBits((1.0, 2.0), 3.0, {Copy(1, 1, "w"): b"b"})
    assert compare(5, [first, second], bits) is None
    missing = StepBits((1.0, 2.0), 3.0, {Copy(0, 0, "w"): b"a"})
    assert compare(5, [missing], bits) == "step 5: the gradient of w (stage 1 on rank 1) differs from the reference's"
    other_loss = StepBits((1.0, 2.5), 3.0, second.gradients)
    assert compare(5, [first, other_loss], bits) == "step 5: the loss of microbatch 1 is 2.5, the reference's 2.0"
    other_norm = StepBits((1.0, 2.0), 4.0, second.gradients)
    assert "gradient norm is 4.0" in compare(5, [first, other_norm], bits)
    assert compare_parameters([{Copy(0, 0, "w"): b"a"}, {Copy(1, 1, "w"): b"b"}], bits.gradients) is None
    assert (
        compare_parameters([{Copy(0, 0, "w"): b"a"}], bits.gradients)
        == "after the last step, w (stage 1 on rank 1) differs from the reference's"
    )


def test_a_stage_that_raises(run, monkeypatch, tmp_path):
    monkeypatch.setattr("pipert.train.model.Mlp.forward", lambda self, x: x @ x)
    with pytest.raises(StageError, match="0F0") as caught:
        run()
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert not (tmp_path / "latest").exists()


def test_one_process_computes_one_op_after_another():
    plan = pipert.compile(pipert.schedules.build("zb-h1", num_ranks=2, num_microbatches=3))
    costs = Costs.per_stage([StageCosts(F=1, I=2, W=3), StageCosts(F=10, I=20, W=30)])
    report = predict(plan, costs, one_process=True)
    assert report.compute_times == (18, 180)
    assert report.makespan == 198
    assert predict(plan, costs, one_process=False).makespan < 198


def test_replicas_cost_their_mean():
    plan = pipert.compile(pipert.schedules.build("1f1b", num_ranks=2, num_microbatches=2))
    measured = [{(0, 0): StageCosts(F=1, I=2, W=3), (0, 1): StageCosts(F=4, I=4, W=0, B=8)}]
    measured += [{(1, 1): StageCosts(F=6, I=6, W=0, B=10)}]
    costs = measured_costs(plan, measured, [], None)
    assert costs.stages == (StageCosts(F=1, I=2, W=3), StageCosts(F=5, I=5, W=0, B=9))
