"""PyTorch's schedule CSV: what it writes is read, what pipert writes it reads."""

from __future__ import annotations

import pathlib
from types import SimpleNamespace
from typing import Any

import pytest

from pipert import PlanError, passes, schedules
from pipert.ir.csv import from_csv, to_csv

SIZES = [(1, 3), (2, 4), (3, 7), (4, 8)]


@pytest.mark.parametrize("name", schedules.names())
@pytest.mark.parametrize(("p", "m"), SIZES)
def test_round_trip(name: str, p: int, m: int) -> None:
    program = schedules.build(name, num_ranks=p, num_microbatches=m)
    text = to_csv(program)
    assert from_csv(text, name=name) == program
    assert to_csv(from_csv(text)) == text


def test_idle_cells_and_blanks_are_dropped_and_pairs_are_kept() -> None:
    text = "0F0,0F1,,(0B0;0F2)OVERLAP_F_B,, 0I1 ,0W1\r\n,1F0,1B0,\r\n"
    program = from_csv(text, name="hand-written")
    assert program.name == "hand-written"
    assert program.paths == ((0, 1),)
    assert program.num_microbatches == 3
    assert to_csv(program) == "0F0,0F1,(0B0;0F2)OVERLAP_F_B,0I1,0W1\r\n1F0,1B0\r\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0F0,0B0\n1F0,2F0junk\n", "line 2, column 2: not an op: '2F0junk'"),
        ("0F0,0B0\n,,1UNSHARD\n", "line 2, column 3: 1UNSHARD: this CSV holds"),
        ("0F0,0SEND_F0\n", "line 1, column 2: 0SEND_F0: this CSV holds F, B, I, W, OVERLAP_F_B, but no SEND_F"),
        ("0F0,0R0,0B0\n", "line 1, column 2: 0R0: this CSV holds F, B, I, W, OVERLAP_F_B, but no R"),
        ("(0F0;0R1)OVERLAP_F_B", "but no R"),
        (
            "0F0,0F1\n0B0,0B1\n",
            "line 2, column 1: 0B0: expected stage 0, microbatch 0 on rank 0, as 0F0 at line 1, column 1, got rank 1",
        ),
        ("0F0\n2F0\n", "stage 1 stands in no row, but stage 2 does"),
        ("999999999F0\n", "stage 0 stands in no row"),
        ("0F999999999\n", "microbatch 0 stands in no row, but microbatch 999999999 does"),
        ("0F0\n,,\n1F0", "row 2 holds no op"),
        ("", "there is no op in it"),
        ('0F0,"0B0\n', "line 1: not a CSV"),
    ],
)
def test_a_bad_file_is_refused_naming_line_column_and_text(text: str, message: str) -> None:
    with pytest.raises(PlanError) as error:
        from_csv(text)
    assert message in str(error.value)


def test_an_op_that_the_file_cannot_hold_is_refused_by_name() -> None:
    program = passes.recompute(schedules.build("1f1b", num_ranks=2, num_microbatches=2), [1])
    with pytest.raises(PlanError, match=r"rank 1: 1R0: .* but no R"):
        to_csv(program)


def torch_schedule(kind: str, num_ranks: int, num_chunks: int, num_microbatches: int) -> Any:
    """A schedule of PyTorch's as rank 0 has it, on stages that are mere names: it is never run."""
    torch_schedules = pytest.importorskip(
        "torch.distributed.pipelining.schedules", reason="this torch has no torch.distributed.pipelining"
    )
    stages = [
        SimpleNamespace(
            num_stages=num_ranks * num_chunks,
            group_size=num_ranks,
            group_rank=0,
            group=None,
            stage_index=chunk * num_ranks,
            is_first=chunk == 0,
            is_last=False,
            has_backward=True,
            submod=None,
        )
        for chunk in range(num_chunks)
    ]
    return getattr(torch_schedules, kind)(stages, n_microbatches=num_microbatches, loss_fn=lambda *_: None)


def torch_texts(schedule: Any) -> list[list[str]]:
    return [[str(action) for action in actions if action] for actions in schedule.pipeline_order.values()]


@pytest.mark.parametrize(("p", "m"), [(2, 4), (4, 8)])
@pytest.mark.parametrize(
    "kind",
    [
        "ScheduleInterleaved1F1B",
        "ScheduleLoopedBFS",
        "ScheduleInterleavedZeroBubble",
        "ScheduleZBVZeroBubble",
        "ScheduleDualPipeV",
    ],
)
def test_what_pytorch_writes_is_read(kind: str, p: int, m: int, tmp_path: pathlib.Path) -> None:
    theirs = torch_schedule(kind, p, 2, m)
    path = tmp_path / "theirs.csv"
    theirs._dump_csv(str(path), format="compute_only")
    program = from_csv(path.read_bytes().decode())
    passes.validate(program)
    assert [list(map(str, ops)) for ops in program.ranks] == torch_texts(theirs)
    assert dict(enumerate(program.paths[0])) == theirs.stage_index_to_group_rank
    assert program.num_microbatches == m


@pytest.mark.parametrize("name", schedules.names())
@pytest.mark.parametrize(("p", "m"), SIZES)
def test_what_is_written_pytorch_reads(name: str, p: int, m: int, tmp_path: pathlib.Path) -> None:
    program = schedules.build(name, num_ranks=p, num_microbatches=m)
    path = tmp_path / "ours.csv"
    path.write_bytes(to_csv(program).encode())
    theirs = torch_schedule("_PipelineScheduleRuntime", p, program.num_stages // p, m)
    if len(program.paths) > 1:
        with pytest.raises(AssertionError, match="is assigned to both rank"):  # PyTorch has no replicas
            theirs._load_csv(str(path))
        return
    theirs._load_csv(str(path))
    assert torch_texts(theirs) == [list(map(str, ops)) for ops in program.ranks]
    assert theirs.stage_index_to_group_rank == dict(enumerate(program.paths[0]))
