"""Weight gradients in other places: nothing else moves, nothing gets worse, nobody holds more."""

from __future__ import annotations

import dataclasses

import pytest
from program_judge import run

import pipert
from pipert import Costs, schedules
from pipert.activation import peak_activation
from pipert.costs import Link, StageCosts
from pipert.ir import Op, Program
from pipert.schedules import placement
from pipert.schedules.building_block import v_half, v_min
from pipert.schedules.fill import fill_weights
from pipert.schedules.interleaved_zb import interleaved_zb
from pipert.schedules.request import Request, rank_by_rank
from pipert.schedules.zb_h2 import zb_h2
from pipert.schedules.zb_v import zb_v

PLAIN = {
    "zb-v": rank_by_rank(zb_v, placement.vee),
    "zb-h2": rank_by_rank(zb_h2, placement.loop),
    "interleaved-zb": rank_by_rank(interleaved_zb, placement.loop),
    "v-half": v_half,
    "v-min": v_min,
}
SPLIT = ["gpipe-2bp", "1f1b-2bp", "zb-h1", "zb-h2", "interleaved-zb", "zb-v", "v-half", "v-min", "gis-h", "zeropp"]


def program_of(*rows: str) -> Program:
    return Program.single_path("", range(len(rows)), 3, [tuple(map(Op.parse, row.split())) for row in rows])


def uneven(num_stages: int) -> Costs:
    stages = [
        StageCosts(F=1 + s % 3 / 4, I=1.25 - s % 2 / 8, W=0.5 + s % 5 / 4, act=1 + s % 2, act_w=0.5)
        for s in range(num_stages)
    ]
    return Costs.per_stage(stages, p2p=0.25, links={(0, 1): Link(latency=1.0)} if num_stages > 2 else None)


COSTS = [
    Costs.per_rank(),
    Costs.per_rank(F=18.522, I=18.086, W=9.337, p2p=0.601, act_w=0.37),
    Costs.per_rank(F=1.0, I=1.3, W=1.7, p2p=0.3, act_w=1.0),
]


def test_a_gap_takes_the_weight_gradient_that_fits() -> None:
    program = program_of("0F0 0F1 0F2 0I0 0I1 0I2 0W0 0W1 0W2", "1F0 1I0 1F1 1I1 1F2 1I2 1W0 1W1 1W2")
    fits = fill_weights(program, Costs.per_rank(F=2, I=2, W=2), keep_peak=False)
    assert " ".join(map(str, fits.ranks[0])) == "0F0 0F1 0F2 0I0 0W0 0I1 0W1 0I2 0W2"
    assert fits.ranks[1] == program.ranks[1]
    for overrun, order in [(0.0, "0F0 0F1 0F2 0I0 0I1 0I2 0W0 0W1 0W2"), (0.5, "0F0 0F1 0F2 0I0 0W0 0I1 0I2 0W1 0W2")]:
        too_long = fill_weights(program, Costs.per_rank(F=2, I=2, W=3), overrun=overrun, keep_peak=False)
        assert " ".join(map(str, too_long.ranks[0])) == order


def test_a_forward_that_would_not_fit_into_memory_waits_for_a_weight_gradient() -> None:
    program = program_of("0F0 0I0 0W0 0F1 0I1 0F2 0W1 0I2 0W2")
    assert " ".join(map(str, fill_weights(program, Costs.per_rank()).ranks[0])) == "0F0 0I0 0F1 0I1 0W0 0F2 0I2 0W1 0W2"
    free = fill_weights(program, Costs.per_rank(), keep_peak=False)
    assert " ".join(map(str, free.ranks[0])) == "0F0 0I0 0F1 0I1 0F2 0I2 0W0 0W1 0W2"


@pytest.mark.parametrize("name", SPLIT)
@pytest.mark.parametrize("overrun", [0.0, 0.5, 1.0])
def test_only_weight_gradients_move_and_memory_stays(name: str, overrun: float) -> None:
    for p, m in [(1, 3), (2, 5), (3, 7), (4, 3), (4, 9)]:
        program = schedules.build(name, num_ranks=p, num_microbatches=m)
        for costs in [*COSTS, uneven(program.num_stages)]:
            filled = fill_weights(program, costs, overrun=overrun)
            for before, after in zip(program.ranks, filled.ranks, strict=True):
                assert set(before) == set(after)
                assert len(before) == len(after)
                weights = [op for op in after if op.kind.text == "W"]
                assert [(op.stage, op.microbatch) for op in weights] == [
                    (op.stage, op.microbatch) for op in after if op.kind.text == "I"
                ]
                assert [op for op in before if op.kind.text != "W"] == [op for op in after if op.kind.text != "W"]
            until_w = dataclasses.replace(
                costs, stages=tuple(dataclasses.replace(s, act=1.0, act_w=1.0) for s in costs.stages)
            )
            for measure in (costs, until_w):
                assert max(peak_activation(filled, measure)) <= max(peak_activation(program, measure)) + 1e-9


@pytest.mark.parametrize("name", PLAIN)
def test_a_refined_schedule_is_never_worse_by_the_simulator(name: str) -> None:
    plain, refined = PLAIN[name], schedules.SCHEDULES[name].make
    chunks = schedules.SCHEDULES[name].num_chunks
    num_better = 0
    for p, m in [(1, 3), (2, 3), (3, 2), (4, 3), (4, 8), (5, 7), (8, 12)]:
        for costs in [*COSTS, uneven(p * chunks), Costs.per_rank(rank_speed=[1 + r % 2 for r in range(p)])]:
            programs = [make(Request(p, m, chunks, costs)) for make in (plain, refined)]
            before, after = (pipert.simulate(pipert.compile(program), costs) for program in programs)
            assert after.makespan <= before.makespan * (1 + 1e-9)
            assert after.longest_rank_span <= before.longest_rank_span * (1 + 1e-9)
            assert max(run(programs[1]).peaks) <= max(run(programs[0]).peaks)
            num_better += after.makespan < before.makespan * 0.999
    assert num_better > 2


def test_zb_v_on_measured_times_is_better_than_its_pattern() -> None:
    costs = Costs.per_rank(F=18.522, I=18.086, W=9.337, p2p=0.601)
    plain, refined = PLAIN["zb-v"], schedules.SCHEDULES["zb-v"].make
    for m, saved in [(5, 40.0), (8, 50.0), (12, 20.0)]:
        request = Request(8, m, 2, costs)
        before, after = (pipert.simulate(pipert.compile(make(request)), costs) for make in (plain, refined))
        assert after.makespan < before.makespan - saved / 2
