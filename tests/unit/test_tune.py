"""``pipert tune``: its profile, its cuts against brute force, and what it chooses."""

from __future__ import annotations

import itertools
import json
import random

import pytest
from typer.testing import CliRunner

import pipert
from pipert import Costs
from pipert.cli import app
from pipert.cli import tune as tune_command
from pipert.costs import Link
from pipert.errors import ConfigError
from pipert.tune import Layer, dump_profile, load_profile, tune
from pipert.tune.machine import Machine
from pipert.tune.megatron import megatron
from pipert.tune.partition import bottleneck_cut, even_cut, improve, neighbours, slices
from pipert.tune.profile import parse_profile, stage_costs

HEAVY = [
    Layer("embed", 1, 0.25, 0.5, 10, 2, 5),
    *(Layer(f"block{i}", 4, 4, 3, 100, 40, 5) for i in range(3)),
    Layer("heavy", 16, 15, 12, 300, 120, 5),
    *(Layer(f"block{i}", 4, 4, 3, 100, 40, 5) for i in range(4, 8)),
    Layer("head", 6, 6, 5, 80, 20, 5),
]


def random_layers(rng, count):
    return [Layer(str(i), *(rng.uniform(0.5, 5) for _ in "FIW"), act=rng.uniform(1, 3)) for i in range(count)]


def all_cuts(num_layers, num_stages):
    for ends in itertools.combinations(range(1, num_layers), num_stages - 1):
        yield tuple(b - a for a, b in itertools.pairwise((0, *ends, num_layers)))


def test_the_bottleneck_is_the_least_of_all_cuts():
    rng = random.Random(0)
    for _ in range(60):
        times = [rng.choice([0.0, rng.uniform(0, 4), 9.0]) for _ in range(rng.randint(1, 9))]
        speeds = [rng.choice([0.5, 1.0, 2.0]) for _ in range(rng.randint(1, len(times)))]

        def bottleneck(cut, times=times, speeds=speeds):
            return max(sum(times[part]) / speed for part, speed in zip(slices(cut), speeds, strict=True))

        cut = bottleneck_cut(times, speeds)
        assert sum(cut) == len(times)
        assert min(cut) >= 1
        assert bottleneck(cut) == pytest.approx(min(map(bottleneck, all_cuts(len(times), len(speeds)))))


def test_neighbours_are_cuts_one_layer_apart():
    around = list(neighbours((1, 2, 3)))
    assert set(around) == {(2, 1, 3), (2, 2, 2), (1, 3, 2), (1, 1, 4)} | {(1, 1, 4), (2, 2, 2)}
    assert improve((4, 1, 1), lambda cut: max(cut) - min(cut)) == (2, 2, 2)


@pytest.mark.parametrize(("layers", "stages", "cut"), [(8, 4, (2, 2, 2, 2)), (10, 4, (3, 3, 2, 2)), (4, 4, (1,) * 4)])
def test_an_even_cut(layers, stages, cut):
    assert even_cut(layers, stages) == cut


def test_tuning_is_as_good_as_trying_every_cut_of_1f1b():
    rng = random.Random(1)
    layers = random_layers(rng, 7)
    machine = Machine(3, p2p=0.1)
    plan = pipert.compile(pipert.schedules.build("1f1b", num_ranks=3, num_microbatches=6))
    best = min(pipert.simulate(plan, machine.costs(layers, cut)).makespan for cut in all_cuts(7, 3))
    assert tune(layers, machine, 6).step_time <= best * (1 + 1e-9)


def test_one_heavy_layer():
    machine = Machine(4)
    tuned = tune(HEAVY, machine, 8)
    report = pipert.simulate(tuned.plan(), tuned.costs)
    assert report.makespan == tuned.step_time >= tuned.bound
    assert sum(tuned.cut) == len(HEAVY)
    assert tuned.costs.stages == tuple(stage_costs(HEAVY[part]) for part in slices(tuned.cut))
    baseline = megatron(HEAVY, machine, 8)
    assert baseline.num_chunks == 2
    assert tuned.step_time < baseline.step_time / 1.5


def test_one_copy_of_the_model_where_that_is_asked_for():
    tuned = tune(HEAVY, Machine(4), 8, replicas=False)
    assert len(tuned.program.paths) == 1
    assert tuned.step_time < megatron(HEAVY, Machine(4), 8).step_time


def test_the_same_seed_gives_the_same_answer():
    assert tune(HEAVY, Machine(3), 6, seed=3) == tune(HEAVY, Machine(3), 6, seed=3)


def test_the_memory_limit_is_kept_and_too_low_a_one_is_refused_with_the_least():
    machine = Machine(4, memory_limit=600)
    tuned = tune(HEAVY, machine, 8)
    assert max(pipert.simulate(tuned.plan(), tuned.costs).peak_activation) <= 600 * (1 + 1e-9)
    with pytest.raises(ConfigError, match="the least limit found is 310"):
        tune(HEAVY, Machine(4, memory_limit=250), 8)
    assert tune(HEAVY, Machine(4, memory_limit=310), 8).step_time > tuned.step_time


def test_slow_ranks_get_less_to_do():
    layers = [Layer(str(i), 2, 2, 2, 1, 0) for i in range(12)]
    tuned = tune(layers, Machine(3, rank_speed=(1.0, 0.5, 1.0)), 6, replicas=False)
    layers_on = [sum(tuned.cut[stage] for stage in tuned.program.chunks(rank)) for rank in range(3)]
    assert layers_on[1] < min(layers_on[0], layers_on[2])
    assert tuned.step_time < megatron(layers, Machine(3, rank_speed=(1.0, 0.5, 1.0)), 6).step_time


def test_a_slow_link_is_not_taken():
    slow = {(0, 1): Link(latency=50.0), (1, 0): Link(latency=50.0)}
    tuned = tune([Layer(str(i), 2, 2, 2, 1, 0) for i in range(3)], Machine(3, links=slow), 6, replicas=False)
    (path,) = tuned.program.paths
    assert all({a, b} != {0, 1} for a, b in itertools.pairwise(path))


def test_it_stops_when_told_to():
    tuned = tune(HEAVY, Machine(4), 8, should_stop=lambda: True)
    assert tuned.step_time >= tuned.bound


def test_transfers_take_their_bytes():
    machine = Machine(2, bandwidth=2.0, message_bytes=1.0)
    assert machine.costs(HEAVY, (5, 5)).occupancy == 2.5
    bare = [Layer("a", 1, 1, 1), Layer("b", 1, 1, 1)]
    assert machine.costs(bare, (1, 1)).occupancy == 0.5


def test_a_profile_is_read_as_it_was_written():
    assert list(parse_profile(dump_profile(HEAVY))) == HEAVY
    assert parse_profile("W,name,F,I\n3,a,1,2\n") == (Layer("a", 1, 2, 3),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is empty"),
        ("name,F,I,W\n", "no layers"),
        ("name,F,I\na,1,1\n", "the column 'W' is missing"),
        ("name,F,I,W,X\na,1,1,1,1\n", "line 1, column 5: 'X' is not one of"),
        ("name,F,I,W,F\na,1,1,1,1\n", "line 1, column 5: 'F' stands there twice"),
        ("name,F,I,W\na,1,1,1\nb,1,one,1\n", r"line 3, column 3 \(I\): 'one' is not a number"),
        ("name,F,I,W\na,1,1,nan\n", r"line 2, column 4 \(W\): 'nan' must be finite"),
        ("name,F,I,W\na,-1,1,1\n", r"line 2, column 2 \(F\): '-1' must be finite and not negative"),
        ("name,F,I,W\na,1,1\n", "line 2: 3 cells, but the header has 4 columns"),
        ("name,F,I,W\n,1,1,1\n", r"line 2, column 1 \(name\): the layer has no name"),
        ("name,F,I,W,act,act_w\na,1,1,1,1,2\n", r"line 2, column 6 \(act_w\): 2 is a part of act"),
        ('name,F,I,W\n"a,1,1,1\n', "line 2"),
    ],
)
def test_a_bad_profile_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_profile(text)


def test_fewer_layers_than_stages():
    with pytest.raises(ConfigError, match="the profile has 3 layers, fewer than the 4 stages"):
        tune(HEAVY[:3], Machine(4), 8)


def run(*arguments):
    if "tune" not in {command.callback.__name__ for command in app.registered_commands}:
        tune_command.register(app)
    return CliRunner().invoke(app, ["tune", *map(str, arguments)])


def test_the_command_writes_a_plan_and_its_costs(tmp_path):
    profile, plan_file = tmp_path / "layers.csv", tmp_path / "tuned.json"
    profile.write_text(dump_profile(HEAVY))
    result = run(profile, "--ranks", 2, "--microbatches", 4, "--rank-speed", "1,0.5", "-o", plan_file, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    report = pipert.simulate(pipert.Plan.load(plan_file), Costs.load(tmp_path / "tuned.toml"))
    assert report.makespan == found["step_time"] >= found["lower_bound"]
    assert sum(map(len, found["stages"])) == len(HEAVY)
    assert found["gain"] == pytest.approx(1 - found["step_time"] / found["megatron"]["step_time"])
    text = run(profile, "--ranks", 2, "--microbatches", 4, "-o", plan_file).stdout
    assert "embed … " in text
    assert "less time" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rank-speed", "1,2,3"), "3 numbers for 2 ranks"),
        (("--rank-speed", "1,fast"), "not a list of numbers"),
        (("--memory-limit", "5"), "lacks"),
    ],
)
def test_bad_options_are_refused(tmp_path, arguments, message):
    profile = tmp_path / "layers.csv"
    profile.write_text("name,F,I,W\na,1,1,1\nb,1,1,1\n")
    result = run(profile, "--ranks", 2, "--microbatches", 4, *arguments)
    assert isinstance(result.exception, ConfigError)
    assert message in str(result.exception)


def test_a_profile_that_is_not_there():
    with pytest.raises(ConfigError, match="cannot read the profile"):
        load_profile("nowhere.csv")
