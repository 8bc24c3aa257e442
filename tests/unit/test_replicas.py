"""Programs in which stages stand on several ranks, and each microbatch takes one path through them."""

import copy
import itertools
import json

import plain_clock
import program_judge
import pytest

import pipert
from pipert import Program
from pipert.ir import Op
from pipert.plan import Slot


def opposite(num_ranks: int, num_microbatches: int) -> Program:
    """Two pipelines in opposite directions, the microbatches in turn: each rank runs backwards first, when it can."""
    paths = tuple(range(num_ranks)), tuple(reversed(range(num_ranks)))
    path_of = tuple(microbatch % 2 for microbatch in range(num_microbatches))
    todo = [
        sorted(
            ((kind, stage, microbatch) for microbatch in range(num_microbatches) for stage in range(num_ranks)
             if paths[path_of[microbatch]][stage] == rank for kind in "BF"),
            key=lambda op: (op[0], op[2]),
        )
        for rank in range(num_ranks)
    ]  # fmt: skip
    done: set[tuple[str, int, int]] = set()
    rows: list[list[Op]] = [[] for _ in range(num_ranks)]

    def ready(kind, stage, microbatch):
        if kind == "F":
            return stage == 0 or ("F", stage - 1, microbatch) in done
        downstream = stage == num_ranks - 1 or ("B", stage + 1, microbatch) in done
        return downstream and ("F", stage, microbatch) in done

    while any(todo):
        now = [next((op for op in ops if ready(*op)), None) for ops in todo]
        for rank, op in enumerate(now):
            if op is not None:
                todo[rank].remove(op)
                done.add(op)
                rows[rank].append(Op.parse(f"{op[1]}{op[0]}{op[2]}"))
    return Program(f"opposite-{num_ranks}", paths, path_of, tuple(map(tuple, rows)))


SIZES = [(2, 2), (2, 5), (3, 4), (4, 4), (4, 8)]


@pytest.mark.parametrize(("num_ranks", "num_microbatches"), SIZES)
def test_a_transfer_takes_the_edge_of_its_microbatchs_path(num_ranks, num_microbatches):
    program = opposite(num_ranks, num_microbatches)
    plan = pipert.compile(program)
    assert program_judge.stuck_with_rendezvous(program) == []
    assert (plan.paths, plan.path_of, plan.num_microbatches) == (program.paths, program.path_of, num_microbatches)
    assert plan.num_ranks == num_ranks
    for op_id, op in enumerate(plan.ops):
        lane = plan.lanes[plan.op_lane[op_id]]
        assert lane.rank == plan.rank_of_stage(op.stage, op.microbatch) == program.rank_of(op.stage, op.microbatch)
        if "SEND" in op.kind.text or "RECV" in op.kind.text:
            step = 1 if op.kind.text in ("SEND_F", "RECV_B") else -1
            assert lane.peer == program.rank_of(op.stage + step, op.microbatch)
    crossing = sum(a != b for path in program.path_of for a, b in itertools.pairwise(program.paths[path]))
    assert sum("SEND" in text for text in plan.op_text) == 2 * crossing


@pytest.mark.parametrize(("num_ranks", "num_microbatches"), SIZES)
def test_the_simulator_agrees_with_a_plain_one(num_ranks, num_microbatches):
    plan = pipert.compile(opposite(num_ranks, num_microbatches))
    costs = pipert.Costs.per_rank(F=1.0, I=1.25, W=0.5, p2p=0.125)
    trace = pipert.simulate(plan, costs).trace
    start, end = plain_clock.run(plan, costs)
    assert list(trace.start) == pytest.approx(start)
    assert list(trace.end) == pytest.approx(end)


@pytest.mark.parametrize(("num_ranks", "num_microbatches"), SIZES)
def test_a_plan_file_keeps_them(tmp_path, num_ranks, num_microbatches):
    plan = pipert.compile(opposite(num_ranks, num_microbatches))
    plan.save(tmp_path / "plan.json")
    assert pipert.Plan.load(tmp_path / "plan.json") == plan


def test_a_stage_that_a_rank_holds_through_both_paths_is_one_stage():
    rows = "0F0 0B0 2F1 2B1", "1F0 1B0 1F1 1B1", "2F0 2B0 0F1 0B1"
    ranks = tuple(tuple(map(Op.parse, row.split())) for row in rows)
    plan = pipert.compile(Program("in turn", ((0, 1, 2), (2, 1, 0)), (0, 1), ranks))
    assert plan.holders(1) == (1,)
    assert plan.holders(0) == plan.holders(2) == (0, 2)
    assert [plan.chunks(rank) for rank in range(3)] == [(0, 2), (1,), (0, 2)]
    assert plan.slots.count(Slot(1, 1, "input")) == 2, "an edge's sender writes into slots of its own"
    columns = columns_of(plan)
    first, second = (plan.op_text.index(text) for text in ("1RECV_F0", "1RECV_F1"))
    columns["ops"]["slot"][second] = columns["ops"]["slot"][first]
    with pytest.raises(pipert.PlanError, match=r"1RECV_F1 .*: expected a slot of its own edge, .* 1RECV_F0 \(op \d+\)"):
        pipert.Plan.from_dict(columns)


def columns_of(plan):
    return json.loads(json.dumps(plan.to_dict()))


@pytest.mark.parametrize(
    ("path_of", "message"),
    [
        ((1, 1), r"rank 0: 0F0 \(op \d+\): expected rank 1's compute lane, found rank 0's compute lane"),
        ((0, 0), r"rank \d: \dF1 \(op \d+\): expected rank \d's compute lane, found rank \d's compute lane"),
    ],
)
def test_a_microbatch_off_its_path(path_of, message):
    columns = copy.deepcopy(columns_of(pipert.compile(opposite(2, 2))))
    columns["path_of"] = path_of
    with pytest.raises(pipert.PlanError, match=message):
        pipert.Plan.from_dict(columns)


def test_the_slot_of_another_rank():
    columns = columns_of(pipert.compile(opposite(4, 4)))
    row = columns["ops"]["text"].index("1RECV_F0")
    slot = columns["ops"]["slot"][row]
    columns["slots"]["rank"][slot] = 2
    with pytest.raises(pipert.PlanError, match=r"1RECV_F0 .*: expected a slot of its rank, its stage and its payload"):
        pipert.Plan.from_dict(columns)


def test_ranks_that_wait_for_each_other_through_two_paths():
    rows = ["0F0 1F1 0B0 1B1", "0F1 1F0 0B1 1B0"]
    program = Program("stuck", ((0, 1), (1, 0)), (0, 1), tuple(tuple(map(Op.parse, row.split())) for row in rows))
    with pytest.raises(pipert.PlanError) as error:
        pipert.compile(program)
    assert str(error.value).splitlines()[-1] == (
        "0B0 waits for 0RECV_B0 waits for 1SEND_B0 waits for 1B0 waits for 0B1 waits for 0RECV_B1 waits for 1SEND_B1 "
        "waits for 1B1 waits for 0B0"
    )


def test_paths_that_do_not_match():
    program = opposite(2, 2)
    with pytest.raises(pipert.PlanError, match="path 1: expected the 2 stages of path 0, got 1: replicas do not match"):
        pipert.compile(Program("test", ((0, 1), (1,)), program.path_of, program.ranks))
