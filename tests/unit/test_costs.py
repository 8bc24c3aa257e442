import math

import pytest

from pipert import ConfigError, Costs
from pipert.sim import StageCosts


def test_parse_takes_the_arguments_of_per_rank():
    text = "F=1.5, I=2,W=3,B=4,R=0.5,p2p=0.1,bandwidth=100,message_bytes=8,act=2,act_w=0.37,host_cores=2"
    assert Costs.parse(text) == Costs.per_rank(
        F=1.5, I=2, W=3, B=4, R=0.5, p2p=0.1, bandwidth=100, message_bytes=8, act=2, act_w=0.37, host_cores=2
    )
    assert Costs.parse("") == Costs.per_rank()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("F=1,I", "'I' is not NAME=NUMBER"),
        ("F=fast", "'fast' in 'F=fast' is not a number"),
        ("F=1,F=2", "'F' is given more than once"),
        ("bandwith=3", "unknown cost 'bandwith' .did you mean 'bandwidth'"),
        ("X=3", "unknown cost 'X'; known are F, I, W"),
        ("F=-1", "F must be finite and not negative, not -1.0"),
        ("W=nan", "W must be finite and not negative, not nan"),
        ("p2p=inf", "p2p must be finite"),
        ("act=1,act_w=2", "act_w=2 is a part of act=1"),
        ("host_cores=0", "host_cores must be positive"),
        ("bandwidth=10", "give both, or neither"),
        ("message_bytes=10", "give both, or neither"),
    ],
)
def test_parse_names_what_is_wrong(text, message):
    with pytest.raises(ConfigError, match=message):
        Costs.parse(text)


def test_defaults_of_one_stage():
    costs = StageCosts(F=2, I=3, W=4)
    assert (costs.full_backward, costs.recompute) == (7, 2)
    assert (StageCosts(B=5, R=1).full_backward, StageCosts(B=5, R=1).recompute) == (5, 1)


def test_numbers_only():
    with pytest.raises(ConfigError, match="F must be a number, not '1'"):
        StageCosts(F="1")
    with pytest.raises(ConfigError, match="not negative"):
        StageCosts(act=-math.inf)


def test_file_per_stage(tmp_path):
    path = tmp_path / "costs.toml"
    path.write_text("p2p = 0.25\nhost_cores = 2\n[[stage]]\nF = 1\nact = 3.5\n[[stage]]\nI = 2\nB = 2.5\n")
    stages = [StageCosts(F=1, act=3.5), StageCosts(I=2, B=2.5)]
    assert Costs.load(path) == Costs.per_stage(stages, p2p=0.25, host_cores=2)


def test_file_per_rank(tmp_path):
    path = tmp_path / "costs.toml"
    path.write_text("F = 2\np2p = 0.5\n")
    assert Costs.load(path) == Costs.per_rank(F=2, p2p=0.5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("F = ", "is not TOML"),
        ("[[stage]]\nF = 1\np2p = 3\n", "unknown cost 'p2p'"),
        ("F = 1\n[[stage]]\nI = 1\n", "unknown cost 'F'"),
        ("stage = 3\n", "must be .*stage.* tables"),
        ("[[stage]]\nF = 'x'\n", "F must be a number, not 'x'"),
    ],
)
def test_file_names_what_is_wrong(tmp_path, content, message):
    path = tmp_path / "costs.toml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message) as error:
        Costs.load(path)
    assert "costs.toml" in str(error.value)


def test_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read costs file .*none.toml.*: No such file"):
        Costs.load(tmp_path / "none.toml")
