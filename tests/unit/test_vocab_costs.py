"""Costs of the passes over the vocabulary: text, files, traces, the clock, the bound, what commands do with them."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import plain_clock
import pytest
import typer
from typer.testing import CliRunner

import pipert
from pipert import ConfigError, Costs, passes, schedules
from pipert.cli import plan, simulate, sweep, tune, view
from pipert.costs import VOCAB_NAMES
from pipert.sim import StageCosts, VocabCosts
from pipert.solve.bound import lower_bound
from pipert.tune import Layer, dump_profile
from pipert.tune.vocabulary import split_vocabulary

app = typer.Typer()
for command in (plan, simulate, sweep, tune, view):
    command.register(app)

VOCAB = VocabCosts(0.75, 0.5, 0.0625, 0.125, 0.25, 0.1875, 0.03125, 0.3125, 0.375, act_s=0.5)
NAMES = ["1f1b", "interleaved", "zb-h1", "zb-v", "v-half", "hanayo", "dualpipe-v"]


def split(name: str, algorithm: int, p: int = 4, m: int = 8, costs: Costs | None = None) -> pipert.Plan:
    base = schedules.build(name, num_ranks=p, num_microbatches=m)
    return pipert.compile(passes.vocab_parallel(base, algorithm, costs))


def test_text_takes_the_names_of_vocab_costs() -> None:
    text = "F=2,I=2,W=1," + ",".join(f"{name}={value}" for name, value in dataclasses.asdict(VOCAB).items())
    assert Costs.parse(text) == Costs.per_rank(F=2, I=2, W=1, vocab=VOCAB)
    assert Costs.parse("F=2,I=2,W=1").vocab is None
    assert Costs.parse("p2p=1").vocab == VocabCosts()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("S=1", "T must be given with S"),
        ("vbcast=1", "S and T must be given with vbcast"),
        ("S=1,T=-1", "T must be finite and not negative"),
        ("S=1,T=1,vbcst=1", "unknown cost 'vbcst' .did you mean 'vbcast'"),
    ],
)
def test_text_names_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Costs.parse(text)


@pytest.mark.parametrize("stages", [(StageCosts(F=3),), (StageCosts(F=3), StageCosts(F=1))])
def test_files_hold_them(tmp_path: Path, stages: tuple[StageCosts, ...]) -> None:
    costs = Costs(stages, whole_rank=len(stages) == 1, vocab=VOCAB)
    costs.save(tmp_path / "costs.toml")
    assert Costs.load(tmp_path / "costs.toml") == costs
    without = dataclasses.replace(costs, vocab=None)
    without.save(tmp_path / "costs.toml")
    assert Costs.load(tmp_path / "costs.toml") == without


def test_a_plan_needs_them() -> None:
    with pytest.raises(ConfigError, match="the costs lack those of the passes over the vocabulary: give S and T"):
        pipert.simulate(split("1f1b", 1), Costs.per_rank())


@pytest.mark.parametrize("cores", [None, 2.0])
@pytest.mark.parametrize("algorithm", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_an_independent_clock_agrees(name: str, algorithm: int, cores: float | None) -> None:
    costs = Costs.per_rank(
        F=1, I=1.25, W=0.5, p2p=0.125, bandwidth=16, message_bytes=1, host_cores=cores, rank_speed=(1, 0.5, 2, 1),
        vocab=VOCAB,
    )  # fmt: skip
    plan = split(name, algorithm, costs=costs)
    start, end = plain_clock.run(plan, costs)
    trace = pipert.simulate(plan, costs).trace
    assert list(trace.start) == pytest.approx(start, abs=1e-9)
    assert list(trace.end) == pytest.approx(end, abs=1e-9)


@pytest.mark.parametrize("algorithm", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_a_simulated_step_gives_its_costs_back(name: str, algorithm: int) -> None:
    costs = Costs.per_rank(F=1, I=1.25, W=0.5, vocab=VOCAB)
    again = Costs.from_trace(pipert.simulate(split(name, algorithm), costs).trace).known_vocab
    assert again.act_s == 0
    for field in VOCAB_NAMES[:-1]:
        assert getattr(again, field) == pytest.approx(getattr(VOCAB, field)), field


def test_a_step_without_backward_gives_no_t() -> None:
    program = passes.vocab_parallel(schedules.forward_only([(0, 1)], [0] * 3), 2)
    costs = Costs.from_trace(pipert.simulate(pipert.compile(program), Costs.per_rank(vocab=VOCAB)).trace)
    assert (pytest.approx(0.75), 0) == (costs.known_vocab.S, costs.known_vocab.T)
    plain = pipert.simulate(pipert.compile(schedules.build("1f1b", num_ranks=2, num_microbatches=2)), Costs.per_rank())
    assert Costs.from_trace(plain.trace).vocab is None


@pytest.mark.parametrize("algorithm", [1, 2])
def test_no_order_is_below_the_bound(algorithm: int) -> None:
    rng = random.Random(algorithm)
    for _ in range(60):
        name, p, m = rng.choice(NAMES), rng.randint(1, 5), rng.randint(1, 9)
        base = schedules.build(name, num_ranks=p, num_microbatches=m)
        if rng.random() < 0.2:
            base = schedules.forward_only(base.paths, base.path_of)
        stages = [StageCosts(F=rng.random(), I=rng.random(), W=rng.random()) for _ in range(base.num_stages)]
        vocab = VocabCosts(*(rng.choice([0, 1, 3]) * rng.random() for _ in range(9)))
        speeds = [rng.choice([0.5, 1, 2]) for _ in range(p)]
        costs = Costs.per_stage(stages, p2p=rng.random() / 4, rank_speed=speeds, vocab=vocab)
        made = passes.vocab_parallel(base, algorithm, costs)
        report = pipert.simulate(pipert.compile(made), costs)
        bound = lower_bound(made, costs)
        assert report.lower_bound == bound
        assert bound.makespan <= report.makespan * (1 + 1e-9)
        assert bound.longest_rank_span <= report.longest_rank_span * (1 + 1e-9)
        work = max(time - m * vocab.embed / speed for time, speed in zip(report.compute_times, speeds, strict=True))
        assert work <= bound.longest_rank_span * (1 + 1e-9)


LAYERS = [
    Layer("embedding", 0.5, 0.0, 1.5),
    *(Layer(f"block {number}", 1.0, 1.0, 1.0, act=1.0) for number in range(8)),
    Layer("head", 4.0, 3.0, 5.0),
]


def test_a_profile_whose_ends_are_split() -> None:
    layers, first = split_vocabulary(LAYERS, 4, 1)
    assert layers == tuple(LAYERS[1:-1])
    assert (first.S, first.T, first.embed, first.embed_w) == (1.0, 2.0, 0.125, 0.375)
    _, second = split_vocabulary(LAYERS, 4, 2)
    assert (second.S, second.T) == (1.75, 1.25)
    with pytest.raises(ConfigError, match="has 10 layers, but a split vocabulary needs 11"):
        split_vocabulary(LAYERS, 9, 1)


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_tune_splits_the_ends_of_a_profile(tmp_path: Path) -> None:
    (tmp_path / "layers.csv").write_text(dump_profile(LAYERS))
    plan, sizes = tmp_path / "tuned.json", ("--ranks", 4, "--microbatches", 8)
    found = json.loads(run("tune", tmp_path / "layers.csv", *sizes, "--vocab-parallel", 2, "-o", plan, "--json"))
    assert [name for stage in found["stages"] for name in stage] == [f"block {number}" for number in range(8)]
    assert "vocab-2" in found["schedule"]
    again = json.loads(run("simulate", plan, "--costs-file", tmp_path / "tuned.toml", "--json"))
    assert again["makespan"] == pytest.approx(found["step_time"])
    unsplit = json.loads(run("tune", tmp_path / "layers.csv", *sizes, "-o", tmp_path / "unsplit.json", "--json"))
    assert found["step_time"] < unsplit["step_time"]  # the head alone is half of a rank's share too much
    text = run("tune", tmp_path / "layers.csv", *sizes, "--vocab-parallel", 2, "-o", plan)
    assert "vocabulary      split over all ranks, on each S 1.75 and T 1.25 ms" in text


SIZES = ("--ranks", 4, "--microbatches", 8)


def test_commands_split_the_vocabulary(tmp_path: Path) -> None:
    report = json.loads(
        run("simulate", "zb-v", *SIZES, "--vocab-parallel", 1, "--costs", "F=2,I=2,W=2,S=1,T=0.5", "--json")
    )
    assert report["name"] == "zb-v-vocab-1"
    assert report["compute_times"] == pytest.approx([8 * 7.5] * 4)
    grid = run("plan", "zb-h1", *SIZES, "--vocab-parallel", 2)
    assert all(text in grid for text in ("S0", "T7", "at F = I = W = S = T = 1"))
    run("plan", "zb-h1", *SIZES, "--vocab-parallel", 2, "-o", tmp_path / "plan.json")
    assert "zb-h1-vocab-2: 4 ranks" in run("simulate", tmp_path / "plan.json")
    row = json.loads(run("sweep", "--schedules", "1f1b,chimera", *SIZES, "--vocab-parallel", 2, "--json"))
    assert row[0]["makespan"] == pytest.approx(48, abs=4)
    assert "has replicas of its stages" in row[1]["refused"]
    run("view", "1f1b", "zb-v", *SIZES, "--vocab-parallel", 2, "-o", tmp_path / "two.svg")
    picture = (tmp_path / "two.svg").read_text()
    assert picture.count("S: logits of a shard") == picture.count("T: their gradients") == 1
    assert "1f1b-vocab-2 · zb-v-vocab-2" in picture


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("plan", "1f1b", *SIZES, "--vocab-parallel", 1, "--format", "csv"), "but no EMBED"),
        (("plan", "1f1b", *SIZES, "--vocab-parallel", 1, "--format", "lowered-csv"), "but no EMBED"),
        (("plan", "1f1b", *SIZES, "--vocab-parallel", 1, "--costs", "F=1,I=1,W=1"), "give S and T with the others"),
        (("simulate", "dualpipe", *SIZES, "--vocab-parallel", 1), "has replicas of its stages"),
        (("simulate", "1f1b", *SIZES, "--vocab-parallel", 1, "--post-validation"), "in which all ranks meet"),
        (("simulate", "plan.json", "--vocab-parallel", 1, "--ranks", 2), "--ranks goes with a schedule's name"),
        (("simulate", "gpipe", *SIZES, "--vocab-parallel", 1, "--memory-limit", 8, "--costs",
          "F=1,B=2,S=1,T=1,act_s=1"),
         "holds 9 or more on its fullest rank, but the memory limit is 8"),
    ],
)  # fmt: skip
def test_commands_refuse_what_does_not_go_together(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(pipert.PipertError, match=message):
        run(*arguments)
