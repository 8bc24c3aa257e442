"""Passes: text in, text out; and programs with a fault are refused by the op that is at fault."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from program_judge import stuck_with_rendezvous

import pipert
from pipert import ConfigError, PlanError, passes, schedules
from pipert.ir import Op, Program


def program(*rows: str, num_microbatches: int = 1) -> Program:
    """Rank r holds stage r."""
    ranks = tuple(tuple(map(Op.parse, row.split())) for row in rows)
    return Program.single_path("mine", tuple(range(len(rows))), num_microbatches, ranks)


def texts(made: Program) -> list[str]:
    return [" ".join(map(str, ops)) for ops in made.ranks]


OF_ONE_ORDER = [name for name, schedule in schedules.SCHEDULES.items() if not schedule.from_costs]


@st.composite
def valid_programs(draw: st.DrawFn) -> Program:
    p, m = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    made = schedules.build(draw(st.sampled_from(OF_ONE_ORDER)), num_ranks=p, num_microbatches=m)
    if draw(st.booleans()):
        made = passes.split_backward(made)
    return passes.recompute(made, draw(st.sets(st.integers(0, made.num_stages - 1))))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("0F0 0B0", "0F0 0I0 0W0"),
        ("0F0 0I0 0W0", "0F0 0I0 0W0"),
        ("0F0 0F1 0R0 0B0 0B1", "0F0 0F1 0R0 0I0 0W0 0I1 0W1"),
        ("0F0 (0F1;0B0)OVERLAP_F_B 0B1", "0F0 (0F1;0I0)OVERLAP_F_B 0W0 0I1 0W1"),
    ],
)
def test_split_backward(row: str, expected: str) -> None:
    assert texts(passes.split_backward(program(row))) == [expected]


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        ([], ["0F0 0B0", "1F0 1I0 1W0"]),
        ([0], ["0F0 0R0 0B0", "1F0 1I0 1W0"]),
        ([1, 0], ["0F0 0R0 0B0", "1F0 1R0 1I0 1W0"]),
    ],
)
def test_recompute(stages: list[int], expected: list[str]) -> None:
    assert texts(passes.recompute(program("0F0 0B0", "1F0 1I0 1W0"), stages)) == expected


def test_recompute_goes_before_a_pair() -> None:
    made = passes.recompute(program("0F0 (0F1;0B0)OVERLAP_F_B 0B1"), [0])
    assert texts(made) == ["0F0 0R0 (0F1;0B0)OVERLAP_F_B 0R1 0B1"]


def test_recompute_refuses_what_it_cannot_do() -> None:
    made = program("0F0 0B0", "1F0 1B0")
    with pytest.raises(ConfigError, match="no stage 2 to recompute: mine has 2 stages"):
        passes.recompute(made, [2])
    with pytest.raises(ConfigError, match="stage 1 of mine recomputes already"):
        passes.recompute(passes.recompute(made, [1]), [0, 1])


@given(valid_programs())
def test_every_schedule_is_valid_before_and_after_every_pass(made: Program) -> None:
    passes.validate(made)
    passes.validate(passes.split_backward(made))
    passes.validate(schedules.forward_only(made.paths, made.path_of))


@given(st.integers(1, 5), st.integers(1, 9), st.sampled_from(["gpipe", "1f1b", "interleaved"]))
def test_splitting_the_backward_leaves_a_schedule_runnable(p: int, m: int, name: str) -> None:
    split = passes.split_backward(schedules.build(name, num_ranks=p, num_microbatches=m))
    assert stuck_with_rendezvous(split) == []


@given(valid_programs(), st.data())
def test_a_program_without_one_of_its_ops_is_refused_by_that_op(made: Program, data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, made.num_ranks - 1))
    index = data.draw(st.integers(0, len(made.ranks[rank]) - 1))
    op = made.ranks[rank][index]
    lacking = replace_row(made, rank, made.ranks[rank][:index] + made.ranks[rank][index + 1 :])
    forward_only = all(each.kind.text == "F" for ops in lacking.ranks for each in ops)
    assume(op.kind.text != "R" and not op.parts and not forward_only)
    with pytest.raises(PlanError) as error:
        passes.validate(lacking)
    assert error.value.rank == rank
    assert error.value.op is not None
    found = Op.parse(error.value.op)
    assert (found.stage, found.microbatch) == (op.stage, op.microbatch)
    assert f"rank {rank}: {found}: expected" in str(error.value)


@given(valid_programs(), st.data())
def test_a_program_with_an_op_twice_is_refused_by_that_op(made: Program, data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, made.num_ranks - 1))
    op = data.draw(st.sampled_from(made.ranks[rank]))
    where = data.draw(st.integers(0, len(made.ranks[rank])))
    doubled = replace_row(made, rank, (*made.ranks[rank][:where], op, *made.ranks[rank][where:]))
    with pytest.raises(PlanError, match="expected it once, got it at positions") as error:
        passes.validate(doubled)
    assert error.value.op in map(str, op.unpacked)


@given(valid_programs(), st.data())
def test_a_program_with_an_op_on_another_rank_is_refused_by_that_op(made: Program, data: st.DataObject) -> None:
    assume(made.num_ranks > 1)
    rank = data.draw(st.integers(0, made.num_ranks - 1))
    other = data.draw(st.integers(0, made.num_ranks - 1).filter(lambda r: r != rank))
    op = data.draw(st.sampled_from(made.ranks[rank]))
    moved = replace_row(made, rank, tuple(each for each in made.ranks[rank] if each != op))
    moved = replace_row(moved, other, (*moved.ranks[other], op))
    with pytest.raises(PlanError, match=f"expected it on rank {rank}, got it on rank {other}") as error:
        passes.validate(moved)
    assert error.value.op in map(str, op.unpacked)


@given(valid_programs(), st.data())
def test_a_program_with_two_ops_of_one_microbatch_swapped_is_refused(made: Program, data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, made.num_ranks - 1))
    op = data.draw(st.sampled_from([each for each in made.ranks[rank] if not each.parts]))
    same = [each for each in made.ranks[rank] if (each.stage, each.microbatch) == (op.stage, op.microbatch)]
    others = [each for each in same if each != op and not each.parts]
    assume(others)
    other = data.draw(st.sampled_from(others))
    swap = {op: other, other: op}
    swapped = replace_row(made, rank, tuple(swap.get(each, each) for each in made.ranks[rank]))
    with pytest.raises(PlanError, match=rf"rank {rank}: {op.stage}[BIWR]{op.microbatch}: expected it after"):
        passes.validate(swapped)


def replace_row(made: Program, rank: int, ops: tuple[Op, ...]) -> Program:
    return dataclasses.replace(made, ranks=(*made.ranks[:rank], ops, *made.ranks[rank + 1 :]))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            program("0F0 0B0", "1F0 1B0 1SEND_B0"),
            "rank 1: 1SEND_B0: expected no transfers, which lowering adds, got an op of a send lane",
        ),
        (program("0F0 0B0 1F0"), "rank 0: 1F0: expected a stage below 1, got 1"),
        (program("0F0 0B0 0F1"), "rank 0: 0F1: expected a microbatch below 1, got 1"),
        (program("0F0 0I0 0W0 0B0"), "rank 0: 0I0: expected either 0B0 or 0I0 and 0W0, got both"),
        (program("0F0 0B0", "1F0"), "rank 1: 1B0: expected either 1B0 or 1I0 and 1W0, got neither"),
        (program("0F0 0I0"), "rank 0: 0W0: expected it once, as there is 0I0, got none"),
        (program("0F0 0W0"), "rank 0: 0I0: expected it once, as there is 0W0, got none"),
        (program("0F0 0R0"), "rank 0: 0B0: expected either"),
        (program("0B0 0F0"), "rank 0: 0B0: expected it after 0F0, got it before"),
        (program("0F0 0B0 0R0"), "rank 0: 0B0: expected it after 0R0, got it before"),
        (program("(0B0;0F0)OVERLAP_F_B"), "rank 0: 0B0: expected it after 0F0, got it before"),
        (program("0F0 0B0", num_microbatches=2), "rank 0: 0F1: expected it once, got none"),
        (program("0F0", num_microbatches=0), "expected at least one rank and one microbatch"),
        (Program.single_path("none", (), 1, ()), "none: expected at least one rank and one microbatch, got 0 ranks"),
        (Program.single_path("far", (0, 2), 1, ((), ())), "stage 1: expected a rank below 2, got 2"),
        (Program.single_path("idle", (0,), 1, ((), ())), "rank 1: expected at least one stage, got none"),
    ],
)
def test_faults_are_named(made: Program, message: str) -> None:
    with pytest.raises(PlanError) as error:
        passes.validate(made)
    assert message in str(error.value)


def row_texts(made: Program) -> list[str]:
    return [" ".join(map(str, ops)) for ops in made.ranks]


def test_post_validation_looks_back_in_the_warm_up_and_steps_at_the_end() -> None:
    made = passes.post_validation(schedules.build("1f1b", num_ranks=3, num_microbatches=2))
    assert row_texts(made) == [
        "0F0 0F1 0VALIDATE 0ROLLBACK 0B0 0B1 0NORM 0OPT",
        "1F0 1F1 1VALIDATE 1ROLLBACK 1B0 1B1 1NORM 1OPT",
        "2F0 2VALIDATE 2ROLLBACK 2B0 2F1 2B1 2NORM 2OPT",
    ]
    plan = pipert.compile(made)
    transfers = [text for text in plan.op_text if "NORM" in text or "TOTAL" in text]
    assert [text for text in transfers if "SEND_NORM" in text] == ["0SEND_NORM", "1SEND_NORM"]
    assert [text for text in transfers if "SEND_TOTAL" in text] == ["2SEND_TOTAL", "1SEND_TOTAL"]
    assert pipert.Plan.from_dict(plan.to_dict()) == plan


@pytest.mark.parametrize("name", [*schedules.names()])
def test_post_validation_fits_any_schedule_without_replicas(name: str) -> None:
    program = schedules.build(name, num_ranks=4, num_microbatches=8)
    if len(program.paths) > 1:
        with pytest.raises(ConfigError, match="replicas"):
            passes.post_validation(program)
        return
    costs = pipert.Costs.per_rank(F=2, I=2, W=1, p2p=0.25)
    made = passes.post_validation(program)
    assert [op for ops in made.ranks for op in ops if op.unpacked] == [op for ops in program.ranks for op in ops]
    before, after = pipert.simulate(pipert.compile(program), costs), pipert.simulate(pipert.compile(made), costs)
    if name in ("1f1b", "zb-h1", "zb-h2"):
        assert before.makespan <= after.makespan <= before.makespan + 0.25 * 3  # the norms' way up


def test_post_validation_refuses_what_it_cannot_serve() -> None:
    program = schedules.build("1f1b", num_ranks=2, num_microbatches=2)
    with pytest.raises(ConfigError, match="has post-validation already"):
        passes.post_validation(passes.post_validation(program))
    with pytest.raises(ConfigError, match="no backward"):
        passes.post_validation(schedules.forward_only([(0, 1)], [0, 0]))
