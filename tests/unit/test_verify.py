"""The core's judgement of plans: every kind of fault in an otherwise valid plan, and what the message names."""

import copy
import dataclasses
import re

import pytest

import pipert
from pipert import schedules
from pipert.ir import Op, Program
from pipert.ops import OpKind


def program(stage_ranks, num_microbatches, *ranks):
    return Program.single_path(
        "test", stage_ranks, num_microbatches, tuple(tuple(map(Op.parse, ops.split())) for ops in ranks)
    )


class Editor:
    """A plan as rows that can be moved and removed; dependencies follow their ops."""

    def __init__(self, plan):
        columns = copy.deepcopy(plan.to_dict())
        ops = columns.pop("ops")
        self.columns = columns
        offsets = ops["dep_offsets"]
        self.rows = [
            {"text": text, "lane": lane, "slot": slot}
            for text, lane, slot in zip(ops["text"], ops["lane"], ops["slot"], strict=True)
        ]
        for i, row in enumerate(self.rows):
            row["deps"] = [self.rows[dep] for dep in ops["deps"][offsets[i] : offsets[i + 1]]]

    def __getitem__(self, text):
        return next(row for row in self.rows if row["text"] == text)

    def remove(self, text):
        gone = self[text]
        self.rows.remove(gone)
        for row in self.rows:
            row["deps"] = [dep for dep in row["deps"] if dep is not gone]

    def move(self, text, *, before):
        row = self[text]
        self.rows.remove(row)
        self.rows.insert(self.rows.index(self[before]), row)

    def swap_texts(self, first, second):
        rows = self[first], self[second]
        rows[0]["text"], rows[1]["text"] = second, first

    def lane(self, rank, kind, peer=-1):
        lanes = self.columns["lanes"]
        return list(zip(lanes["rank"], lanes["kind"], lanes["peer"], strict=True)).index((rank, kind, peer))

    def to_dict(self):
        number = {id(row): i for i, row in enumerate(self.rows)}
        deps = [sorted(number[id(dep)] for dep in row["deps"]) for row in self.rows]
        offsets = [0]
        for of_row in deps:
            offsets.append(offsets[-1] + len(of_row))
        ops = {name: [row[name] for row in self.rows] for name in ("text", "lane", "slot")}
        return self.columns | {"ops": {**ops, "dep_offsets": offsets, "deps": [dep for row in deps for dep in row]}}

    def refused(self, message):
        with pytest.raises(pipert.PlanError) as error:
            pipert.Plan.from_dict(self.to_dict())
        assert re.fullmatch(message, str(error.value), re.DOTALL), str(error.value)
        return error.value


@pytest.fixture
def plan():
    return Editor(pipert.compile(schedules.build("1f1b", num_ranks=3, num_microbatches=5)))


@pytest.fixture
def split():
    return Editor(pipert.compile(schedules.build("zb-v", num_ranks=2, num_microbatches=4)))


def test_the_untouched_plan_is_valid(plan, split):
    pipert.Plan.from_dict(plan.to_dict())
    pipert.Plan.from_dict(split.to_dict())


def test_errors_carry_rank_and_op(plan):
    plan.remove("2RECV_F3")
    error = plan.refused(r"rank 1: 1SEND_F3 \(op \d+\): expected 2RECV_F3 in the next row, found \S+")
    assert (error.rank, error.op) == (1, "1SEND_F3")


def test_missing_send(plan):
    plan.remove("1SEND_B2")
    plan.refused(r"rank 0: 0RECV_B2 \(op \d+\): expected 1SEND_B2 in the row before, found \S+")


def test_missing_transfer(plan):
    plan.remove("1SEND_F3")
    plan.remove("2RECV_F3")
    plan.refused("rank 1: stage 1, microbatch 3: expected 1SEND_F3, found none")


def test_missing_gradient_transfer(plan):
    plan.remove("1SEND_B3")
    plan.remove("0RECV_B3")
    plan.refused("rank 1: stage 1, microbatch 3: expected 1SEND_B3, found none")


def test_gradient_transfer_without_backward():
    plan = Editor(pipert.compile(schedules.forward_only([(0, 1)], [0] * 2)))
    lanes = plan.columns["lanes"]
    lanes["rank"] += [1, 0]
    lanes["kind"] += ["send", "recv"]
    lanes["peer"] += [0, 1]
    for text, lane in (("1SEND_B0", plan.lane(1, "send", 0)), ("0RECV_B0", plan.lane(0, "recv", 1))):
        plan.rows.append({"text": text, "lane": lane, "slot": -1, "deps": []})
    plan.refused("rank 1: stage 1, microbatch 0: expected no gradient in a plan without backward, found 1SEND_B0")


def test_an_op_that_stands_twice(plan):
    plan["1B2"]["text"] = "1B1"
    plan.refused(r"rank 1: 1B1: expected once, found as op \d+ and as op \d+")


def test_a_transfer_that_stands_twice(plan):
    plan.rows += [dict(plan["1SEND_F3"], deps=[]), dict(plan["2RECV_F3"], deps=[])]
    plan.refused(r"rank 1: 1SEND_F3: expected once, found as op \d+ and as op \d+")


def test_missing_forward(plan):
    plan["2F4"]["text"] = "2R4"
    plan.refused("rank 2: stage 2, microbatch 4: expected 2F4, found none")


def test_missing_backward(plan):
    plan.remove("2B4")
    plan.refused("rank 2: stage 2, microbatch 4: expected 2B4, or 2I4 and 2W4, found none")


def test_missing_half_of_a_backward(split):
    split.remove("3W2")
    split.refused("rank 0: stage 3, microbatch 2: expected 3B2, or 3I2 and 3W2, found 3I2")


def test_backward_beside_its_halves(split):
    split["3W2"]["text"] = "3B2"
    split.refused("rank 0: stage 3, microbatch 2: expected 3B2, or 3I2 and 3W2, found 3B2 and 3I2")


def test_backward_before_its_forward(plan):
    plan.swap_texts("1F0", "1B0")
    plan.refused(r"rank 1: 1B0 \(op \d+\): expected 1B0 after 1F0, found 1F0 \(op \d+\) later")


def test_weight_gradient_before_input_gradient(split):
    split.swap_texts("1W0", "1I0")
    split.refused(r"rank 1: 1W0 \(op \d+\): expected 1W0 after 1I0, found 1I0 \(op \d+\) later")


@pytest.mark.parametrize(
    ("ops", "message"),
    [
        ("1F0 0F0 1B0 0B0", r"rank 0: 1F0 \(op 0\): expected its input from an earlier op, found 0F0 \(op 1\) later"),
        (
            "0F0 1F0 0B0 1B0",
            r"rank 0: 0B0 \(op 2\): expected its gradient from an earlier op, found 1B0 \(op 3\) later",
        ),
        (
            "(1F0;0F0)OVERLAP_F_B 1B0 0B0",
            r"rank 0: \(1F0;0F0\)OVERLAP_F_B \(op 0\): expected its input from an earlier op, found .* itself",
        ),
    ],
)
def test_stages_of_one_rank_in_the_wrong_order(ops, message):
    plan = Editor(pipert.compile(program((0, 0), 1, "0F0 1F0 1B0 0B0")))
    texts = ops.split()
    plan.rows = [{"text": text, "lane": 0, "slot": -1, "deps": []} for text in texts]
    plan.refused(message)


def test_the_wrong_lane(plan):
    plan["1SEND_F3"]["lane"] = plan.lane(1, "send", 0)
    plan.refused(
        r"rank 1: 1SEND_F3 \(op \d+\): expected rank 1's send lane to rank 2, found rank 1's send lane to rank 0"
    )


def test_the_wrong_rank(plan):
    plan["1F3"]["lane"] = plan.lane(2, "compute")
    plan.refused(r"rank 2: 1F3 \(op \d+\): expected rank 1's compute lane, found rank 2's compute lane")


def test_a_lane_twice(plan):
    for name, value in (("rank", 1), ("kind", "compute"), ("peer", -1)):
        plan.columns["lanes"][name].append(value)
    plan.refused("rank 1: expected one lane of each kind and peer, found twice: rank 1's compute lane")


def test_a_lane_to_oneself(plan):
    for name, value in (("rank", 1), ("kind", "send"), ("peer", 1)):
        plan.columns["lanes"][name].append(value)
    plan.refused("rank 1: expected a peer on another rank, found rank 1's send lane to rank 1")


def test_a_pair_over_two_ranks(plan):
    plan["1F3"]["text"] = "(1F3;2B0)OVERLAP_F_B"
    plan.refused(r"rank 1: \(1F3;2B0\)OVERLAP_F_B \(op \d+\): expected both parts on rank 1, found stage 2 of rank 2")


def test_a_transfer_beyond_the_last_stage(plan):
    plan["1SEND_F3"]["text"] = "2SEND_F3"
    plan.refused(r"rank 1: 2SEND_F3 \(op \d+\): expected no transfer beyond the last stage, found one")


def test_a_transfer_within_a_rank(split):
    split["0SEND_F3"]["text"] = "1SEND_F3"
    split.refused(
        r"rank 0: 1SEND_F3 \(op \d+\): expected no transfer between stages of one rank, "
        r"found one between stages 1 and 2"
    )


@pytest.mark.parametrize("fixture", ["plan", "split"])
def test_every_dependency_is_needed(fixture, request):
    plan = request.getfixturevalue(fixture)
    for row in plan.rows:
        for dep in list(row["deps"]):
            row["deps"] = [other for other in row["deps"] if other is not dep]
            error = plan.refused(r"rank \d: \S+ \(op \d+\): expected a dependency on \S+ \(op \d+\), \D.*, found .*")
            assert row["text"] == error.op
            needed = re.search(r"a dependency on (\S+) ", str(error))[1]
            assert plan[needed]["lane"] == dep["lane"]
            row["deps"].append(dep)


def test_a_dependency_on_another_rank(plan):
    plan["1F3"]["deps"].append(plan["0F0"])
    plan.refused(r"rank 1: 1F3 \(op \d+\): expected dependencies on its own rank, found 0F0 \(op 0\) on rank 0")


def test_a_dependency_within_its_lane(plan):
    plan["1F3"]["deps"].append(plan["1F0"])
    plan.refused(r"rank 1: 1F3 \(op \d+\): expected dependencies on other lanes, found 1F0 \(op \d+\)")


def test_a_dependency_twice(plan):
    plan["1F3"]["deps"] *= 2
    plan.refused(r"rank 1: 1F3 \(op \d+\): expected ascending dependencies, found (\d+) after \1")


def test_edges_keep_the_order_of_their_producer():
    plan = Editor(pipert.compile(schedules.build("gpipe", num_ranks=2, num_microbatches=2)))
    for text in ("0SEND_F0", "1RECV_F0", "1F0"):
        plan.move(text, before="1F1")
    plan.refused(
        r"rank 0: 0SEND_F0 \(op 4\): expected its edge in the order of its rank's compute ops, "
        r"found 0SEND_F1 \(op 2\) before it"
    )


def test_a_receive_without_a_slot(plan):
    plan["1RECV_F0"]["slot"] = -1
    plan.refused(r"rank 1: 1RECV_F0 \(op \d+\): expected a slot of its rank, its stage and its payload, found none")


def test_the_slot_of_another_payload(plan):
    plan["1RECV_F0"]["slot"] = plan["1RECV_B0"]["slot"]
    plan.refused(r"rank 1: 1RECV_F0 \(op \d+\): expected a slot of its rank, its stage and .*, found slot \d+")


def test_a_slot_of_another_op(plan):
    plan["1F3"]["slot"] = 0
    plan.refused(r"rank 1: 1F3 \(op \d+\): expected no slot, found slot 0")


def test_a_slot_that_is_in_use(plan):
    plan["1RECV_F1"]["slot"] = plan["1RECV_F0"]["slot"]
    plan.refused(
        r"rank 1: 1RECV_F1 \(op \d+\): expected a dependency on 1B0 \(op \d+\), the last to use its slot, found none"
    )


def test_a_rank_without_a_stage(plan):
    plan.columns["paths"] = ((0, 2, 2),)
    plan.refused("plan: rank 1: expected at least one stage, found none")


@pytest.mark.parametrize(
    ("stage_ranks", "ranks", "message"),
    [
        (
            (0, 1),
            ("0F0 0F1 0F2 0B0 0B1 0B2", "1F2 1F0 1F1 1B0 1B1 1B2"),
            """\
deadlock at recv_depth 2: the >marked< ops wait for each other (a row: a rank's ops in order)
  rank 0 | ..          0SEND_F1   0F2        0SEND_F2   0B0   0B1  ..
  rank 1 |  1RECV_F0   1RECV_F1  >1RECV_F2< >1F2<      >1F0<  1F1   1B0  ..
1RECV_F2 waits for 1F0 waits for 1F2 waits for 1RECV_F2""",
        ),
        (
            (0, 1, 0),
            ("2F0 0F0 2B0 0B0", "1F0 1B0"),
            """\
deadlock at recv_depth 2: the >marked< ops wait for each other (a row: a rank's ops in order)
  rank 0 | >2F0< >2RECV_F0< >0F0<      >0SEND_F0<  0RECV_B0   2B0  ..
  rank 1 | >1F0< >1SEND_F0< >1RECV_F0<  1B0        1SEND_B0  ..
2F0 waits for 2RECV_F0 waits for 1SEND_F0 waits for 1F0 waits for 1RECV_F0 waits for 0SEND_F0 waits for 0F0 waits for \
2F0""",
        ),
    ],
)
def test_a_deadlock_is_shown(stage_ranks, ranks, message):
    num_microbatches = len(ranks[0].split()) // 2 // stage_ranks.count(0)
    with pytest.raises(pipert.PlanError) as error:
        pipert.compile(program(stage_ranks, num_microbatches, *ranks))
    assert str(error.value) == message
    assert (error.value.rank, error.value.op) == (1, "1RECV_F2") if stage_ranks == (0, 1) else (0, "2F0")


def test_a_deadlock_among_many_ops_shows_a_window():
    num_microbatches = 3000
    first = [Op(kind, 0, i) for kind in (OpKind.FORWARD, OpKind.BACKWARD) for i in range(num_microbatches)]
    second = [Op(op.kind, 1, op.microbatch) for op in first]
    second[1500], second[1503] = second[1503], second[1500]
    with pytest.raises(pipert.PlanError) as error:
        pipert.compile(Program.single_path("big", (0, 1), num_microbatches, (tuple(first), tuple(second))))
    assert len(str(error.value)) < 1000
    cycle = "1RECV_F1502 waits for 1F1501 waits for 1F1503 waits for 1RECV_F1503 waits for 1RECV_F1502"
    assert str(error.value).endswith("\n" + cycle)
    assert ">1F1503<" in str(error.value)


def test_a_row_order_that_only_several_lanes_survive():
    plan = Editor(pipert.compile(program((0, 1), 1, "0F0 0B0", "1F0 1B0")))
    plan.move("1F0", before="0F0")
    plan.refused(
        r"deadlock at recv_depth 2, where a rank's lanes share one queue: .*"
        r"1F0 waits for 1RECV_F0 waits for 1F0"
    )


def looking_back() -> Program:
    return pipert.passes.post_validation(program((0, 1), 1, "0F0 0B0", "1F0 1B0"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0F0 0B0 0VALIDATE 0ROLLBACK 0NORM 0OPT", r"0B0 .*: expected it after 0ROLLBACK .*"),
        ("0F0 0ROLLBACK 0VALIDATE 0B0 0NORM 0OPT", r"0ROLLBACK .*: expected it after 0VALIDATE"),
        ("0F0 0VALIDATE 0ROLLBACK 0NORM 0B0 0OPT", r"0NORM .*: expected it after 0B0"),
        ("0F0 0VALIDATE 0ROLLBACK 0B0 0OPT 0NORM", r"0OPT .*: expected it after 0NORM"),
        ("0F0 0VALIDATE 0ROLLBACK 0B0 0NORM", "expected 0OPT, as another rank has ops of post-validation, found none"),
        ("0F0 0VALIDATE 0ROLLBACK 0B0 0NORM 0OPT 0OPT", "0OPT: expected once"),
        ("0F0 0VALIDATE 0ROLLBACK 0B0 0NORM 0OPT 1OPT", "1OPT"),
        ("0F0 0VALIDATE 0ROLLBACK 0B0 0NORM 2OPT", "2OPT"),
        ("0F0 0B0", "expected 0VALIDATE|op 0|SEND_TOTAL"),
    ],
)
def test_the_ops_that_end_a_step_stand_where_they_must(row, message):
    made = looking_back()
    bad = dataclasses.replace(made, ranks=(tuple(map(Op.parse, row.split())), made.ranks[1]))
    with pytest.raises(pipert.PlanError, match=message):
        pipert.compile(bad)
