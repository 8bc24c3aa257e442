import itertools

import pytest

import pipert
from pipert import schedules
from pipert.ir import Op, Program
from pipert.ops import LaneKind, OpKind


def program(stage_ranks, num_microbatches, *ranks):
    return Program.single_path(
        "test", stage_ranks, num_microbatches, tuple(tuple(map(Op.parse, ops.split())) for ops in ranks)
    )


def rows(plan):
    """Each row as text, lane, slot and the texts of its dependencies."""
    lanes = [f"{lane.rank}{lane.kind.value}{lane.peer if lane.peer >= 0 else ''}" for lane in plan.lanes]
    deps = [plan.deps[begin:end] for begin, end in zip(plan.dep_offsets, plan.dep_offsets[1:], strict=False)]
    return [
        (text, lanes[lane], slot, [plan.op_text[dep] for dep in of_op])
        for text, lane, slot, of_op in zip(plan.op_text, plan.op_lane, plan.op_slot, deps, strict=True)
    ]


def test_rows_of_two_ranks():
    plan = pipert.compile(program((0, 1), 3, "0F0 0F1 0F2 0B0 0B1 0B2", "1F0 1B0 1F1 1B1 1F2 1B2"))
    assert rows(plan) == [
        ("0F0", "0compute", -1, []),
        ("0SEND_F0", "0send1", -1, ["0F0"]),
        ("1RECV_F0", "1recv0", 0, []),
        ("1F0", "1compute", -1, ["1RECV_F0"]),
        ("0F1", "0compute", -1, []),
        ("0SEND_F1", "0send1", -1, ["0F1"]),
        ("1RECV_F1", "1recv0", 1, []),
        ("1B0", "1compute", -1, []),
        ("1SEND_B0", "1send0", -1, ["1B0"]),
        ("0RECV_B0", "0recv1", 2, []),
        ("0F2", "0compute", -1, []),
        ("0SEND_F2", "0send1", -1, ["0F2"]),
        ("1RECV_F2", "1recv0", 0, ["1B0", "1SEND_B0"]),
        ("1F1", "1compute", -1, ["1RECV_F1"]),
        ("0B0", "0compute", -1, ["0RECV_B0"]),
        ("1B1", "1compute", -1, []),
        ("1SEND_B1", "1send0", -1, ["1B1"]),
        ("0RECV_B1", "0recv1", 3, []),
        ("0B1", "0compute", -1, ["0RECV_B1"]),
        ("1F2", "1compute", -1, ["1RECV_F2"]),
        ("1B2", "1compute", -1, []),
        ("1SEND_B2", "1send0", -1, ["1B2"]),
        ("0RECV_B2", "0recv1", 2, ["0B0"]),
        ("0B2", "0compute", -1, ["0RECV_B2"]),
    ]


def test_stages_on_one_rank_hand_over_without_transfers():
    plan = pipert.compile(program((0, 0), 1, "0F0 1F0 1I0 1W0 0I0 0W0"))
    assert plan.op_text == ("0F0", "1F0", "1I0", "1W0", "0I0", "0W0")
    assert plan.deps == ()
    assert plan.slots == ()


def test_an_overlapped_pair_reads_and_makes_what_its_parts_do():
    plan = pipert.compile(program((0, 1), 2, "0F0 0F1 0B0 0B1", "1F0 (1F1;1B0)OVERLAP_F_B 1B1"))
    by_text = {text: (slot, deps) for text, _, slot, deps in rows(plan)}
    assert by_text["(1F1;1B0)OVERLAP_F_B"] == (-1, ["1RECV_F1"])
    assert by_text["1SEND_B0"] == (-1, ["(1F1;1B0)OVERLAP_F_B"])


def test_forward_only_keeps_a_slot_until_the_output_is_sent():
    plan = pipert.compile(schedules.forward_only([(0, 1, 2)], [0] * 3))
    by_text = {text: (slot, deps) for text, _, slot, deps in rows(plan)}
    assert by_text["1RECV_F2"] == (by_text["1RECV_F0"][0], ["1F0", "1SEND_F0"])
    assert by_text["2RECV_F2"] == (by_text["2RECV_F0"][0], ["2F0"])


@pytest.mark.parametrize("recv_depth", [1, 2, 5])
def test_recv_depth_bounds_the_receives_before_use(recv_depth):
    plan = pipert.compile(schedules.build("gpipe", num_ranks=2, num_microbatches=6), recv_depth=recv_depth)
    waiting = peak = 0
    for op in plan.ops:
        waiting += (op.kind is OpKind.RECV_F) - (op.kind is OpKind.FORWARD and op.stage == 1)
        peak = max(peak, waiting)
    assert 1 <= peak <= recv_depth
    windows = {text: deps for text, _, _, deps in rows(plan) if text.startswith("1RECV_F")}
    assert windows == {f"1RECV_F{i}": [f"1F{i - recv_depth}"] if i >= recv_depth else [] for i in range(6)}


def test_recv_depth_must_be_positive():
    with pytest.raises(pipert.ConfigError, match="at least 1, not 0"):
        pipert.compile(schedules.build("gpipe", num_ranks=2, num_microbatches=2), recv_depth=0)


@pytest.mark.parametrize("name", schedules.names())
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("recv_depth", [2, 4])
def test_every_schedule_compiles(name, num_ranks, recv_depth):
    program = schedules.build(name, num_ranks=num_ranks, num_microbatches=2 * num_ranks)
    plan = pipert.compile(program, recv_depth=recv_depth)
    assert plan == pipert.compile(program, recv_depth=recv_depth)
    assert plan.native.num_ops == plan.num_ops
    assert plan.native.num_ranks == plan.num_ranks == num_ranks
    for rank, ops in enumerate(program.ranks):
        assert tuple(plan.ops[op_id] for op_id in plan.compute_ops(rank)) == ops
        assert {plan.rank_of(op_id) for op_id in plan.compute_ops(rank)} == {rank}
    crossing = sum(a != b for a, b in itertools.pairwise(program.paths[0]))
    sends = [op for op in plan.ops if op.kind.lane is LaneKind.SEND]
    assert len(sends) == len(set(sends)) == 2 * crossing * program.num_microbatches
