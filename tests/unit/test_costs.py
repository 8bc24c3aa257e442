import dataclasses
import math

import pytest

from pipert import ConfigError, Costs, schedules
from pipert.sim import Link, StageCosts, VocabCosts


def test_parse_takes_the_arguments_of_per_rank():
    text = "F=1.5, I=2,W=3,B=4,R=0.5,p2p=0.1,bandwidth=100,message_bytes=8,act=2,act_w=0.37,act_kept=0.1,host_cores=2"
    text += ",unshard=1,reshard=2,reduce_grad=3,opt=4,validate=5,overlap=0.9,rank_speed=1:0.5,microbatch_scale=1:2:3"
    assert Costs.parse(text) == Costs.per_rank(
        F=1.5, I=2, W=3, B=4, R=0.5, p2p=0.1, bandwidth=100, message_bytes=8, act=2, act_w=0.37, act_kept=0.1,
        host_cores=2, unshard=1, reshard=2, reduce_grad=3, opt=4, validate=5, overlap=0.9, rank_speed=(1, 0.5),
        microbatch_scale=(1, 2, 3),
    )  # fmt: skip
    assert Costs.parse("") == Costs.per_rank(vocab=VocabCosts())
    assert Costs.parse("p2p=2") == Costs.per_rank(p2p=2, vocab=VocabCosts())
    assert Costs.parse("F=2,B=6") == Costs.per_rank(F=2, B=6, I=3, W=3)


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
        ("act_w=0.5,act_kept=0.75", "act_kept=0.75 is a part of act_w=0.5"),
        ("host_cores=0", "host_cores must be positive"),
        ("rank_speed=1:0", "rank_speed must be positive"),
        ("rank_speed=1:fast", "'1:fast' in 'rank_speed=1:fast' is not a list of numbers like 1:0.5:1"),
        ("microbatch_scale=1:-1", r"microbatch_scale\[1\] must be finite and not negative"),
        ("overlap=nan", "overlap must be finite"),
        ("F=2", "I and W must be given with F"),
        ("I=1,W=1", "F must be given with I, W"),
        ("F=1,I=1", "W must be given with F, I"),
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
    with pytest.raises(ConfigError, match="microbatch_scale must be a list of numbers, not 2"):
        StageCosts(microbatch_scale=2)


def test_links_of_their_own():
    links = {(0, 1): Link(latency=2), (1, 0): Link(bandwidth=5)}
    costs = Costs.per_rank(p2p=1, bandwidth=10, message_bytes=20, links=links)
    assert [costs.transfer(*edge) for edge in ((0, 1), (1, 0), (1, 2))] == [(2, 2), (1, 4), (1, 2)]
    for wrong, message in (
        ({"links": {(1, 1): Link()}}, "a link leads from one rank to another, not from 1 to 1"),
        ({"links": {(0, 1): Link(bandwidth=5)}}, "give both, or neither"),
        ({"message_bytes": 5}, "give both, or neither"),
    ):
        with pytest.raises(ConfigError, match=message):
            Costs.per_rank(**wrong)
    with pytest.raises(ConfigError, match="bandwidth must be positive"):
        Link(bandwidth=0)


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        ({"rank_speed": [1, 1]}, "rank_speed is for 2 ranks, but plan '1f1b' has 3"),
        ({"links": {(0, 3): Link(latency=1)}}, "a link leads from rank 0 to rank 3, but plan '1f1b' has 3 ranks"),
        ({"microbatch_scale": [1, 2, 3]}, "microbatch_scale is for 3 microbatches, but plan '1f1b' has 4"),
    ],
)
def test_costs_of_other_sizes_than_the_plan(costs, message):
    program = schedules.build("1f1b", num_ranks=3, num_microbatches=4)
    with pytest.raises(ConfigError, match=message):
        Costs.per_rank(**costs).for_plan(program)


def test_file_per_stage(tmp_path):
    path = tmp_path / "costs.toml"
    path.write_text(
        "p2p = 0.25\nhost_cores = 2\nmessage_bytes = 8\nrank_speed = [1, 0.5]\nmicrobatch_scale = [1, 2]\n"
        "[[stage]]\nF = 1\nI = 2\nW = 3\nact = 3.5\nmicrobatch_scale = [3, 4]\n"
        "[[stage]]\nF = 2\nI = 2\nW = 4\nB = 6.5\n"
        "[[link]]\nsrc = 0\ndst = 1\nlatency = 0.5\nbandwidth = 4\n"
    )
    stages = [
        StageCosts(F=1, I=2, W=3, act=3.5, microbatch_scale=(3, 4)),
        StageCosts(F=2, I=2, W=4, B=6.5, microbatch_scale=(1, 2)),
    ]
    links = {(0, 1): Link(0.5, 4)}
    assert Costs.load(path) == Costs.per_stage(
        stages, p2p=0.25, host_cores=2, message_bytes=8, links=links, rank_speed=(1, 0.5)
    )


def test_file_per_rank(tmp_path):
    path = tmp_path / "costs.toml"
    path.write_text("F = 2\nI = 2\nW = 1\np2p = 0.5\n[[link]]\nsrc = 2\ndst = 1\nlatency = 3\n")
    assert Costs.load(path) == Costs.per_rank(F=2, I=2, W=1, p2p=0.5, links={(2, 1): Link(3)})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("F = ", "is not TOML"),
        ("[[stage]]\nF = 1\np2p = 3\n", "unknown cost 'p2p'"),
        ("F = 1\n[[stage]]\nI = 1\n", "unknown cost 'F'"),
        ("[[stage]]\nF = 1\nB = 1\n[[stage]]\nF = 1\n", r"\[\[stage\]\] 1: I and W must be given with F"),
        ("[[stage]]\nF = 1\nB = 1\n[[stage]]\nact = 1\n", r"\[\[stage\]\] 1 lacks F, which \[\[stage\]\] 0 has"),
        ("[[stage]]\nF = -1\n", r"\[\[stage\]\] 0: F must be finite and not negative"),
        ("microbatch_scale = 2\n", "microbatch_scale must be a list of numbers, not 2"),
        ("rank_speed = [1, nan]\n", r"rank_speed\[1\] must be finite"),
        ("[[link]]\nsrc = 1\n", r"\[\[link\]\] 0: dst is missing"),
        ("[[link]]\nsrc = 1\ndst = 0.5\n", "dst must be a rank, not 0.5"),
        ("[[link]]\nsrc = 1\ndst = 0\nspeed = 1\n", "unknown cost 'speed'"),
        ("[[link]]\nsrc = 1\ndst = 0\n[[link]]\nsrc = 1\ndst = 0\n", "same src and dst"),
        ("link = 1", "must be .*link.* tables"),
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


def test_a_model_cut_anew():
    stages = [StageCosts(F=2, I=4, W=6, act=1, act_w=0.5), StageCosts(F=4, I=2, W=2, B=3, act=3)]
    costs = dataclasses.replace(Costs.per_stage(stages), recut=True)

    def cut(num_stages):
        program = schedules.forward_only([tuple(range(num_stages))], [0])
        return costs.for_plan(program)

    assert cut(2) == tuple(stages)
    [whole] = cut(1)
    assert [whole.F, whole.I, whole.W, whole.full_backward, whole.act, whole.act_w] == [6, 6, 8, 13, 4, 0.5]
    assert [stage.F for stage in cut(4)] == [1, 1, 2, 2]
    assert [stage.F for stage in cut(3)] == pytest.approx([4 / 3, 2 / 3 + 4 / 3, 8 / 3])
    with pytest.raises(ConfigError, match="costs are for 2 stages"):
        Costs.per_stage(stages).for_plan(schedules.forward_only([(0,)], [0]))
