"""UNSHARD, RESHARD and REDUCE_GRAD in programs and plans."""

import copy
import json
import random

import pytest
from deadlock_search import PlanSearch
from plan_driver import Driver
from random_plans import with_collectives

import pipert
from pipert import Costs, PlanError, Program, _core, schedules
from pipert.ir import Op
from pipert.ops import LaneKind

SHARDED = [
    "0UNSHARD 2UNSHARD 0F0 0F1 0RESHARD 2F0 2F1 2B0 2B1 2REDUCE_GRAD 0UNSHARD 2RESHARD 0B0 0B1 0REDUCE_GRAD 0RESHARD",
    "1UNSHARD 1F0 1F1 1I0 1I1 1W0 1W1 1REDUCE_GRAD 1RESHARD",
]


def program(rows=SHARDED, stage_ranks=(0, 1, 0), num_microbatches=2):
    ranks = tuple(tuple(map(Op.parse, row.split())) for row in rows)
    return Program.single_path("sharded", stage_ranks, num_microbatches, ranks)


def deps(plan, number, text):
    """The texts of the dependencies of the row that is the ``number``-th with this text."""
    row = [row for row, other in enumerate(plan.op_text) if other == text][number]
    return [plan.op_text[dep] for dep in plan.deps[plan.dep_offsets[row] : plan.dep_offsets[row + 1]]]


def test_collectives_wait_for_compute_ops_and_compute_ops_for_them():
    plan = pipert.compile(program())
    lanes = [lane for lane in plan.lanes if lane.kind is LaneKind.COLLECTIVE]
    assert [(lane.rank, lane.peer) for lane in lanes] == [(0, -1), (1, -1)]
    assert deps(plan, 0, "0UNSHARD") == deps(plan, 1, "0UNSHARD") == []
    assert "0UNSHARD" in deps(plan, 0, "0F0")
    assert deps(plan, 0, "0F1") == []
    assert deps(plan, 0, "0RESHARD") == ["0F1"]
    assert "0UNSHARD" in deps(plan, 0, "0B0")
    assert deps(plan, 0, "2REDUCE_GRAD") == deps(plan, 0, "2RESHARD") == ["2B1"]
    assert deps(plan, 0, "1REDUCE_GRAD") == deps(plan, 0, "1RESHARD") == ["1W1"]


def test_rows_keep_the_order_of_the_program():
    plan = pipert.compile(program())
    for rank, row in enumerate(SHARDED):
        texts = [text for op, text in enumerate(plan.op_text) if plan.rank_of(op) == rank]
        assert " ".join(text for text in texts if "SEND" not in text and "RECV" not in text) == row


def test_a_plan_file_keeps_them(tmp_path):
    plan = pipert.compile(program())
    plan.save(tmp_path / "plan.json")
    assert pipert.Plan.load(tmp_path / "plan.json") == plan


def test_they_take_their_time_beside_the_compute_ops():
    rows = ["0UNSHARD 0F0 1UNSHARD 1F0 1B0 1REDUCE_GRAD 0B0 0REDUCE_GRAD"]
    plan = pipert.compile(program(rows, (0, 0), 1))
    free = pipert.simulate(plan, Costs.per_rank(F=2, I=2, W=2))
    assert free.makespan == 6
    costs = Costs.per_stage([pipert.sim.StageCosts(F=1, I=1, W=1, unshard=3, reduce_grad=0.5)] * 2)
    trace = pipert.simulate(plan, costs).trace
    start = dict(zip(plan.op_text, trace.start, strict=True))
    assert [start[text] for text in rows[0].split()] == [0, 3, 3, 6, 7, 9, 9, 11]


def test_the_executor_calls_their_handlers_in_the_global_order():
    plan = pipert.compile(program())
    driver = Driver(plan, _core.Channels.local(plan.native), range(plan.num_ranks))
    for step in range(2):
        driver.step(step)
        here = [text for text in plan.op_text if "SEND" not in text and "RECV" not in text]
        assert [text for text, _ in driver.calls] == here
        assert {microbatch for text, microbatch in driver.calls if "SHARD" in text or "REDUCE" in text} == {-1}
    assert "rank 0 collective: 8 of 8 ops finished" in driver.executor.status()
    driver.close()


def test_the_grid_leaves_them_out():
    assert "SHARD" not in str(program())
    assert str(program()).count("B") > 2
    assert "stuck" not in str(program())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0F0 0UNSHARD 0B0", r"0F0 \(op 0\): expected 0UNSHARD before it, found none"),
        ("0UNSHARD 0F0 0RESHARD 0B0", r"0B0 \(op 3\): expected 0UNSHARD before it, found none"),
        ("0UNSHARD 0UNSHARD 0F0 0B0", r"0UNSHARD \(op 1\): expected its stage sharded, found 0UNSHARD \(op 0\) before"),
        ("0F0 0B0 0RESHARD", r"0RESHARD \(op 2\): expected 0UNSHARD before it, found none"),
        ("0F0 0REDUCE_GRAD 0B0", r"0REDUCE_GRAD \(op 1\): expected a B or a W of its stage before it, found none"),
        ("0F0 0B0 0REDUCE_GRAD 0REDUCE_GRAD", r"0REDUCE_GRAD \(op 3\): expected a B or a W of its stage before it"),
        ("0F0 0I0 0REDUCE_GRAD 0W0", r"0REDUCE_GRAD \(op 2\): expected a B or a W of its stage before it, found none"),
        ("0F0 0B0 1UNSHARD", r"op 2 \(1UNSHARD\): stage: expected 0..0, found 1"),
    ],
)
def test_what_makes_no_sense_is_refused(row, message):
    with pytest.raises(PlanError, match=message):
        pipert.compile(program([row], (0,), 1))


def test_gradients_that_are_reduced_too_early():
    with pytest.raises(PlanError, match=r"rank 0: 0B1 \(op 4\): expected 0REDUCE_GRAD after it, found none"):
        pipert.compile(program(["0F0 0F1 0B0 0REDUCE_GRAD 0B1"], (0,), 2))


def test_a_stage_that_its_rank_does_not_hold():
    with pytest.raises(PlanError, match=r"rank 1: 0UNSHARD \(op \d\): expected it on a rank that holds its stage"):
        pipert.compile(program(["0F0 0B0", "0UNSHARD 1F0 1B0"], (0, 1), 1))


def can_go_wrong(columns):
    """Whether some interleaving of the lanes computes on a sharded stage, frees one in use or reduces too early."""
    search = PlanSearch(columns, lambda lane: lane)
    ops = [Op.parse(text) for text in columns["ops"]["text"]]
    row_of = {rank: [] for rank in columns["lanes"]["rank"]}
    for row, lane in enumerate(columns["ops"]["lane"]):
        row_of[columns["lanes"]["rank"][lane]].append(row)

    def wrong(state, row):
        mine = next(rows for rows in row_of.values() if row in rows)
        stages = {part.stage for part in ops[row].unpacked or (ops[row],)}
        done = {"UNSHARD": 0, "RESHARD": 0}
        for other in mine:
            if ops[other].kind.text in done and ops[other].stage in stages:
                done[ops[other].kind.text] += search.done(state, other)
        if ops[row].kind.lane is LaneKind.COMPUTE:
            return done["UNSHARD"] == done["RESHARD"]
        if ops[row].kind.text in ("RESHARD", "REDUCE_GRAD"):
            kinds = "FBIW" if ops[row].kind.text == "RESHARD" else "BW"
            earlier = [x for x in mine if x < row and ops[x].stage in stages and ops[x].kind.text in kinds]
            return not all(search.done(state, x) for x in earlier)
        return False

    return any(wrong(state, row) for state in search.states() for step in search.steps(state) for row in step)


def test_the_verdict_on_missing_dependencies_agrees_with_all_interleavings():
    rows = [SHARDED[0].replace("2F0 2F1", "2F0 (2F1;2B0)OVERLAP_F_B").replace(" 2B0 2B1", " 2B1"), SHARDED[1]]
    verdicts = []
    for made in (program(), program(rows)):
        columns = json.loads(json.dumps(pipert.compile(made).to_dict()))
        offsets, texts = columns["ops"]["dep_offsets"], columns["ops"]["text"]
        assert not can_go_wrong(columns)
        for row, text in enumerate(texts):
            for dep in range(offsets[row], offsets[row + 1]):
                needed = texts[columns["ops"]["deps"][dep]]
                if not any(word in text + needed for word in ("SHARD", "REDUCE")):
                    continue
                changed = copy.deepcopy(columns)
                del changed["ops"]["deps"][dep]
                changed["ops"]["dep_offsets"] = [o - (number > row) for number, o in enumerate(offsets)]
                try:
                    pipert.Plan.from_dict(changed)
                except PlanError:
                    verdicts.append("refused")
                else:
                    verdicts.append("accepted")
                assert can_go_wrong(changed) == (verdicts[-1] == "refused"), f"{text} without {needed}"
    assert set(verdicts) == {"refused", "accepted"}


def test_any_schedule_takes_them():
    rng = random.Random(5)
    times = Costs.per_rank(F=1, I=1, W=1)
    for name in ("1f1b", "interleaved", "zb-h1", "zb-v"):
        plain = schedules.build(name, num_ranks=4, num_microbatches=8)
        plan = pipert.compile(with_collectives(rng, plain))
        bare = pipert.compile(plain)
        assert pipert.simulate(plan, times).makespan == pipert.simulate(bare, times).makespan
