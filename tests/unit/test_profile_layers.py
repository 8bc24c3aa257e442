"""``pipert train --profile-layers``: a row for each layer, with the costs of each."""

import typer
from typer.testing import CliRunner

from pipert.cli import train as command
from pipert.train.config import ModelConfig, TrainConfig
from pipert.train.profile_layers import NUM_ROUNDS, profile_layers
from pipert.tune import load_profile

app = typer.Typer()
command.register(app)


def test_each_layer_has_its_row():
    rounds = []
    model = ModelConfig(num_layers=3, dim=32, num_heads=2, seq_len=16)
    layers = profile_layers(TrainConfig(model=model, batch_size=2), rounds.append)
    assert [layer.name for layer in layers] == ["embedding", "block 0", "block 1", "block 2", "head"]
    assert rounds == [1] * NUM_ROUNDS
    hidden, logits = 2 * 16 * 32 * 4, 2 * 16 * 256 * 4
    assert [layer.bytes_out for layer in layers] == [hidden] * 4 + [logits]
    blocks = layers[1:4]
    assert len({(block.act, block.act_w) for block in blocks}) == 1
    assert all(
        block.act > block.act_w > 4 * hidden for block in blocks
    )  # the MLP's width alone is four times the model's
    assert all(min(layer.F, layer.W) > 0 for layer in layers)
    assert all(layer.I > 0 for layer in layers[1:])


def test_the_command_writes_a_profile(tmp_path):
    file = tmp_path / "layers.csv"
    sizes = ("--layers", "2", "--dim", "32", "--heads", "2", "--seq-len", "16", "--dtype", "bf16", "--untied")
    result = CliRunner().invoke(app, [*sizes, "--profile-layers", str(file)])
    assert result.exit_code == 0, result.output
    assert len(load_profile(file)) == 4
    assert "4 layers" in result.stdout
