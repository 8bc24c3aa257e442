"""PyTorch's lowered schedule CSV: both ways, without loss, and nothing else is read."""

from __future__ import annotations

import pathlib
import random
import re
import subprocess
import sys

import pytest
from random_plans import random_plans
from test_csv import torch_schedule
from test_replicas import opposite

import pipert
from pipert import Plan, PlanError, schedules, sources
from pipert.lowering.lowered_csv import is_lowered, plan_from_csv, plan_to_csv


def rows_of(plan: Plan) -> list[list[str]]:
    rows: list[list[str]] = [[] for _ in range(plan.num_ranks)]
    for op, text in enumerate(plan.op_text):
        rows[plan.rank_of(op)].append(text)
    return rows


@pytest.mark.parametrize(("p", "m"), [(2, 4), (4, 8)])
@pytest.mark.parametrize("name", ["gpipe", "1f1b", "interleaved", "breadth-first", "zb-h1", "zb-h2", "zb-v", "gis"])
def test_plan_to_csv_and_back_keeps_every_rank_s_order(name: str, p: int, m: int) -> None:
    plan = pipert.compile(schedules.build(name, num_ranks=p, num_microbatches=m))
    text = plan_to_csv(plan)
    again = plan_from_csv(text)
    assert rows_of(again) == rows_of(plan)
    assert plan_to_csv(again) == text
    assert (again.paths, again.path_of) == (plan.paths, plan.path_of)
    assert again.recv_depth <= plan.recv_depth


def test_random_plans_with_replicas_and_pairs_too() -> None:
    plans = [plan for plan in random_plans(7, 60) if not any("R" in t and "RECV" not in t for t in plan.op_text)]
    plans += [pipert.compile(opposite(p, m)) for p, m in ((2, 2), (3, 4), (4, 8))]
    assert len(plans) > 10
    for plan in plans:
        text = plan_to_csv(plan)
        again = plan_from_csv(text)
        assert rows_of(again) == rows_of(plan)
        assert plan_to_csv(again) == text


def test_the_receive_window_is_what_the_rows_need() -> None:
    text = "0F0,0SEND_F0,0F1,0SEND_F1,0F2,0SEND_F2\n1RECV_F0,1RECV_F1,1F0,1F1,1RECV_F2,1F2\n"
    assert plan_from_csv(text).recv_depth == 2
    text = text.replace("1F1,1RECV_F2", "1RECV_F2,1F1")
    assert plan_from_csv(text).recv_depth == 2
    text = "0F0,0SEND_F0,0F1,0SEND_F1,0F2,0SEND_F2\n1RECV_F0,1RECV_F1,1RECV_F2,1F0,1F1,1F2\n"
    assert plan_from_csv(text).recv_depth == 3


def test_what_the_file_cannot_hold_is_refused_by_name() -> None:
    program = pipert.passes.recompute(schedules.build("1f1b", num_ranks=2, num_microbatches=2), [1])
    with pytest.raises(PlanError, match=r"rank 1: 1R0: .* but no R"):
        plan_to_csv(pipert.compile(program))


KINDS = [
    "ScheduleInterleaved1F1B",
    "ScheduleLoopedBFS",
    "ScheduleInterleavedZeroBubble",
    "ScheduleZBVZeroBubble",
    "ScheduleDualPipeV",
]


@pytest.mark.parametrize(("p", "m"), [(2, 4), (4, 8)])
@pytest.mark.parametrize("kind", KINDS)
def test_what_pytorch_lowers_is_read_and_written_back(kind: str, p: int, m: int, tmp_path: pathlib.Path) -> None:
    theirs = torch_schedule(kind, p, 2, m)
    theirs._prepare_schedule_with_comms(theirs.pipeline_order)
    path = tmp_path / "theirs.csv"
    theirs._dump_csv(str(path), format="compute_comms")
    text = path.read_bytes().decode()
    assert is_lowered(text)
    plan = sources.load(str(path)).plan()
    assert plan_to_csv(plan) == text
    assert any("UNSHARD" in text for text in plan.op_text)
    assert pipert.simulate(plan, pipert.Costs.per_rank()).makespan > 0


@pytest.mark.parametrize(
    ("name", "kind"), [("interleaved", "ScheduleInterleaved1F1B"), ("zb-v", "ScheduleZBVZeroBubble")]
)
def test_pytorch_reads_what_is_written(name: str, kind: str, tmp_path: pathlib.Path) -> None:
    plan = pipert.compile(schedules.build(name, num_ranks=4, num_microbatches=8))
    path = tmp_path / "ours.csv"
    path.write_bytes(plan_to_csv(plan).encode())
    theirs = torch_schedule(kind, 4, 2, 8)
    theirs._load_csv(str(path), format="compute_comms")
    rows = [[str(action) for action in row] for row in theirs.pipeline_order_with_comms.values()]
    assert rows == rows_of(plan)
    assert theirs._simulate()


SMALL = "0F0,0SEND_F0,0F1,0SEND_F1,0RECV_B0,0B0,0RECV_B1,0B1\n1RECV_F0,1F0,1B0,1RECV_F1,1SEND_B0,1F1,1B1,1SEND_B1\n"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",1RECV_F1", "", "line 2, column 5: 1F1: expected 1RECV_F1 before it, found none"),
        (",0SEND_F1", "", "line 1, column 3: 0F1: expected 0SEND_F1 after it, found none"),
        (",1SEND_B0", "", "line 2, column 3: 1B0: expected 1SEND_B0 after it, found none"),
        (",0RECV_B0", "", "line 1, column 5: 0B0: expected 0RECV_B0 before it, found none"),
        (
            "1RECV_F1",
            "1RECV_F1,1RECV_F1",
            "line 2, column 5: 1RECV_F1: expected it once, found it at line 2, column 4 too",
        ),
        (
            "0SEND_F1",
            "0SEND_F0",
            "line 1, column 4: 0SEND_F0: expected it once, found it at line 1, column 2 too",
        ),
        ("0SEND_F1", "0SEND_F2", "line 1, column 4: 0SEND_F2: expected a microbatch below 2, found 2"),
        ("0SEND_F1", "5SEND_F1", "line 1, column 4: 5SEND_F1: expected a stage below 2, found 5"),
        ("0SEND_F1", "1SEND_F1", "line 1, column 4: 1SEND_F1: expected it on rank 1, found it on rank 0"),
        (
            "0SEND_F1",
            "0SEND_B1",
            "line 1, column 4: 0SEND_B1: expected no transfer beyond the ends of the model, found",
        ),
        (
            "0F1,0SEND_F1",
            "0SEND_F1,0F1",
            "line 1, column 3: 0SEND_F1: expected it after 0F1, found 0F1 at line 1, colu",
        ),
        (
            "1RECV_F1,1SEND_B0,1F1",
            "1F1,1RECV_F1,1SEND_B0",
            "line 2, column 5: 1RECV_F1: expected it before 1F1, found 1F1 at line 2, column 4",
        ),
        (
            "0SEND_F0,0F1,0SEND_F1",
            "0F1,0SEND_F1,0SEND_F0",
            "line 1, column 3: 0SEND_F1: expected 0SEND_F0 before it, as their edge has the order of the compute ops, "
            "found 0SEND_F0 at line 1, column 4",
        ),
        ("0B1", "0B1x", "line 1, column 8: not an op: '0B1x'"),
        ("0B1", "0R1", "line 1, column 8: 0R1: this CSV holds F, B, I, W, OVERLAP_F_B, SEND_F, RECV_F, .* but no R"),
        ("0B1", "0B2", "rank 0: 0B1: expected either 0B1 or 0I1 and 0W1, got neither"),
        ("0B1", "(0B1;1F1)OVERLAP_F_B", "line 2, column 6: 1F1: expected stage 1, microbatch 1 on rank 0, as"),
        (",0B1", "", "rank 0: 0B1: expected either 0B1 or 0I1 and 0W1, got neither"),
        ("0B1", "0B1,0B1", "line 1, column .: rank 0: 0B1: expected it once, got it at positions"),
        ("0F0,", "0UNSHARD,0F0,0UNSHARD,", "line 1, column 3: .*0UNSHARD .*: expected its stage sharded, found"),
    ],
)
def test_a_bad_file_is_refused_naming_line_column_and_text(old: str, new: str, message: str) -> None:
    assert old in SMALL
    with pytest.raises(PlanError, match=message):
        plan_from_csv(SMALL.replace(old, new))


def test_rows_that_wait_for_each_other_are_shown() -> None:
    with pytest.raises(PlanError) as error:
        plan_from_csv(SMALL.replace("1RECV_F1,1SEND_B0", "1SEND_B0,1RECV_F1"))
    assert (
        str(error.value)
        == """\
line 1, column 4: deadlock: the >marked< ops wait for each other (a row: a rank's ops in order)
  rank 0 | ..  0SEND_F0   0F1  >0SEND_F1< >0RECV_B0<  0B0   0RECV_B1  ..
  rank 1 | ..  1F0   1B0  >1SEND_B0< >1RECV_F1<  1F1   1B1  ..
0SEND_F1 (line 1, column 4) waits for 1RECV_F1 (line 2, column 5) waits for 1SEND_B0 (line 2, column 4) waits for \
0RECV_B0 (line 1, column 5) waits for 0SEND_F1 (line 1, column 4)
swapping 0SEND_F1 and 0RECV_B0, neighbours on rank 0, would mend it"""
    )
    assert (error.value.rank, error.value.op) == (0, "0SEND_F1")


def test_any_change_of_a_row_is_refused_or_kept() -> None:
    """Swapped, doubled and lost cells: the file is refused, or its rows stand in the plan just as they do in it."""
    rng = random.Random(3)
    text = plan_to_csv(pipert.compile(schedules.build("zb-h1", num_ranks=3, num_microbatches=3)))
    rows = [line.split(",") for line in text.split()]
    verdicts = set()
    for _ in range(300):
        changed = [list(row) for row in rows]
        row = rng.choice(changed)
        at = rng.randrange(len(row) - 1)
        if rng.random() < 0.6:
            row[at], row[at + 1] = row[at + 1], row[at]
        elif rng.random() < 0.5:
            row.insert(rng.randrange(len(row)), row[at])
        else:
            del row[at]
        fault: PlanError | None = None
        try:
            plan = plan_from_csv("\n".join(map(",".join, changed)))
        except PlanError as error:
            fault = error
            verdicts.add(False)
        else:
            verdicts.add(True)
            assert rows_of(plan) == changed
        if fault is not None and any(fault.op in row for row in changed):
            assert re.match(r"line \d+, column \d+: ", str(fault))
    assert verdicts == {True, False}


def pipert_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "pipert", *arguments], capture_output=True, text=True, check=False)


def test_commands_write_and_read_it(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "lowered.csv"
    sizes = ["--ranks", "2", "--microbatches", "2"]
    written = pipert_command("plan", "1f1b", *sizes, "--format", "lowered-csv", "-o", str(path))
    assert written.returncode == 0, written.stderr
    assert path.read_bytes().decode() == plan_to_csv(
        pipert.compile(schedules.build("1f1b", num_ranks=2, num_microbatches=2))
    )
    assert pipert_command("check", str(path)).returncode == 0
    path.write_text(path.read_text().replace(",1RECV_F1", ""))
    refused = pipert_command("check", str(path))
    assert refused.returncode == 1
    assert "lowered.csv: line 2, column 5: 1F1: expected 1RECV_F1 before it, found none" in refused.stderr
