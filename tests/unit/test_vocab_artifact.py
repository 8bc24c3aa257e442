"""The vocabulary split in the 1F1B step that arXiv 2411.05288 measured on 8 A100s, 128 microbatches, vocabulary 256k.

The figures are facts from the paper and from what was published with its code; profiles/vocab says how the costs of a
split vocabulary are taken from them.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
from pathlib import Path

import pytest

import pipert
from pipert import Costs, passes, schedules
from pipert.sim import StageCosts, VocabCosts

PROFILES = Path(__file__).parents[2] / "profiles/vocab"
P, M = 8, 128
FORWARD_US = (10572, 10591, 10475, 10725, 10360, 10444, 10381, 36818)
BACKWARD_US = (25185, 21108, 20737, 21143, 20805, 21030, 20827, 52363)
MEASURED_MS = {"plain": 11722, "redistributed": 7599, 1: 5951, 2: 5900}
PEAK = {1: P + 2, 2: P + 1}


def costs_of(which: object) -> Costs:
    return Costs.load(PROFILES / f"256k-{f'algorithm-{which}' if isinstance(which, int) else which}.toml")


@functools.cache
def report(name: str, algorithm: int) -> pipert.Report:
    costs = costs_of(algorithm)
    base = schedules.build(name, num_ranks=P, num_microbatches=M, costs=costs)
    return pipert.simulate(pipert.compile(passes.vocab_parallel(base, algorithm, costs)), costs)


def without_shards(found: pipert.Report) -> tuple[float, ...]:
    """Peaks in microbatches, without what is held from S to T."""
    assert found.costs is not None
    vocab = dataclasses.replace(found.costs.known_vocab, act_s=0.0)
    return pipert.trace.measure(found.trace, dataclasses.replace(found.costs, vocab=vocab)).peak_activation


def middle(values: tuple[int, ...]) -> float:
    return statistics.mean(values[1:-1])


@pytest.mark.parametrize("algorithm", [1, 2])
def test_the_costs_are_those_of_the_measured_ranks(algorithm: int) -> None:
    costs = costs_of(algorithm)
    (stage,), vocab = costs.stages, costs.known_vocab
    forward, backward = middle(FORWARD_US) / 1000, middle(BACKWARD_US) / 1000
    assert (stage.F, stage.full_backward) == pytest.approx((forward, backward), rel=1e-4)
    assert pytest.approx((24 * 3072 + 8 * 2048) / (24 * 3072), rel=1e-4) == stage.I / stage.W
    output = (FORWARD_US[-1] + BACKWARD_US[-1]) / 1000 - forward - backward
    embedding = (FORWARD_US[0] + BACKWARD_US[0]) / 1000 - forward - backward
    assert pytest.approx(output / P * algorithm / 3, rel=1e-4) == vocab.S
    assert pytest.approx(output / P, rel=1e-4) == vocab.S + vocab.T
    assert vocab.embed + vocab.embed_w == pytest.approx(embedding / P, rel=1e-3)
    plain = costs_of("plain").stages
    assert [1000 * each.F for each in plain] == pytest.approx(FORWARD_US)
    assert [1000 * each.full_backward for each in plain] == pytest.approx(BACKWARD_US)


@pytest.mark.parametrize("which", ["plain", "redistributed"])
def test_what_was_measured_without_the_split(which: str) -> None:
    program = schedules.build("1f1b", num_ranks=P, num_microbatches=M)
    found = pipert.simulate(pipert.compile(program), costs_of(which))
    assert found.makespan == pytest.approx(MEASURED_MS[which], rel=0.02)


@pytest.mark.parametrize("algorithm", [1, 2])
def test_time_bubble_and_peak(algorithm: int) -> None:
    found = report("1f1b", algorithm)
    assert max(without_shards(found)) <= PEAK[algorithm]
    measured = MEASURED_MS[algorithm]
    assert found.bubble_rate <= 1 - max(found.compute_times) / measured
    assert found.makespan < measured < MEASURED_MS["redistributed"]
    # The ranks' own work, the way of one microbatch, and one more S or T for each barrier.
    costs = costs_of(algorithm)
    (stage,), vocab = costs.stages, costs.known_vocab
    work = M * (stage.F + stage.full_backward + vocab.S + vocab.T + vocab.embed + vocab.embed_w)
    way = (P - 1) * (stage.F + stage.full_backward + 2 * costs.p2p)
    assert work < found.makespan < work + way + 2 * (vocab.S + vocab.T)
    assert found.lower_bound is not None
    assert work <= found.lower_bound.makespan + M * vocab.embed <= found.makespan


@pytest.mark.parametrize("algorithm", [1, 2])
def test_ranks_are_balanced(algorithm: int) -> None:
    """With each rank's own times, less what the first and the last have more."""
    inner = list(zip(FORWARD_US[1:-1], BACKWARD_US[1:-1], strict=True))
    mean = (middle(FORWARD_US), middle(BACKWARD_US))
    stages = [StageCosts(F=forward / 1000, B=backward / 1000) for forward, backward in [mean, *inner, mean]]
    costs = Costs.per_stage(stages, p2p=0.35, vocab=costs_of(algorithm).vocab)
    made = passes.vocab_parallel(schedules.build("1f1b", num_ranks=P, num_microbatches=M), algorithm, costs)
    found = pipert.simulate(pipert.compile(made), costs)
    assert max(found.compute_times) / statistics.mean(found.compute_times) - 1 < 0.02
    assert max(without_shards(found)) <= PEAK[algorithm]
    assert found.makespan < MEASURED_MS[algorithm]


@pytest.mark.parametrize(
    ("name", "peak", "bubble", "algorithm"), [("zb-v", P, 0.015, 1), ("v-half", (P + 2) // 2, 0.04, 2)]
)
def test_schedules_that_the_paper_did_not_measure(name: str, peak: float, bubble: float, algorithm: int) -> None:
    found = report(name, algorithm)
    assert max(without_shards(found)) <= peak + (3 - algorithm)
    assert found.bubble_rate < bubble


def test_e_prime_is_a_sixth_of_a_microbatch() -> None:
    """Per token: E' in bf16, and 34 h bytes for each of the rank's four layers."""
    for algorithm in (1, 2):
        vocab: VocabCosts = costs_of(algorithm).known_vocab
        held = 2 * 2**18 / P + 2 * 3072 * algorithm
        assert vocab.act_s == pytest.approx(held / (4 * 34 * 3072), abs=1e-3)
