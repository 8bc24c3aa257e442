"""Rejections name a swap of two neighbours that mends a deadlock, where one does."""

import pathlib
import random

import pytest
from deadlock_search import program_can_get_stuck
from test_deadlock_search import random_program
from test_lowered_csv import SMALL, pipert_command

import pipert
from pipert import PlanError, Program
from pipert.ir import Op
from pipert.lowering.lowered_csv import plan_from_csv
from pipert.lowering.mend import mending_swap


def program(stage_ranks, num_microbatches, *rows):
    ranks = tuple(tuple(map(Op.parse, row.split())) for row in rows)
    return Program.single_path("test", stage_ranks, num_microbatches, ranks)


def swapped(made, swap):
    row = list(made.ranks[swap.rank])
    first, second = Op.parse(swap.first), Op.parse(swap.second)
    at = row.index(first)
    assert row[at + 1] == second, "they must be neighbours, in this order"
    row[at], row[at + 1] = second, first
    return Program(
        made.name, made.paths, made.path_of, (*made.ranks[: swap.rank], tuple(row), *made.ranks[swap.rank + 1 :])
    )


def test_a_swap_is_named():
    made = program((0, 1, 0), 1, "2F0 0F0 2B0 0B0", "1F0 1B0")
    swap = mending_swap(made, pipert.compile)
    assert str(swap) == "swapping 2F0 and 0F0, neighbours on rank 0, would mend it"
    pipert.compile(swapped(made, swap))


def test_a_message_that_its_reader_wants_too_early():
    rows = ["0F0 0F1 0F2 0B0 0B1 0B2", "1F2 1F0 1F1 1B0 1B1 1B2"]
    swap = mending_swap(program((0, 1), 3, *rows), pipert.compile)
    assert str(swap) == "swapping 1F2 and 1F0, neighbours on rank 1, would mend it"


def test_nothing_is_said_of_what_runs_and_of_what_no_swap_mends():
    assert mending_swap(program((0, 1), 1, "0F0 0B0", "1F0 1B0"), pipert.compile) is None
    hopeless = program((0, 1), 4, "0F0 0F1 0F2 0F3 0B0 0B1 0B2 0B3", "1F3 1F2 1F1 1F0 1B0 1B1 1B2 1B3")
    assert mending_swap(hopeless, pipert.compile) is None


@pytest.mark.parametrize("paths", [((0, 1),), ((0, 1, 2),), ((0, 1, 0, 1),), ((0, 1), (1, 0))])
def test_random_deadlocks_are_mended_where_a_swap_does(paths):
    """Each swap that is named works, by an independent judge; where none is named, none does."""
    rng = random.Random(str(paths))
    num_mended = num_hopeless = 0
    while min(num_mended, num_hopeless) < 5:
        made = random_program(rng, paths, 2)
        if not program_can_get_stuck(made, 2):
            continue
        swap = mending_swap(made, pipert.compile)
        if swap is not None:
            num_mended += 1
            assert not program_can_get_stuck(swapped(made, swap), 2)
            continue
        num_hopeless += 1
        for rank, row in enumerate(made.ranks):
            for at in range(len(row) - 1):
                ops = list(row)
                ops[at], ops[at + 1] = ops[at + 1], ops[at]
                try:
                    changed = Program(
                        "test", paths, made.path_of, (*made.ranks[:rank], tuple(ops), *made.ranks[rank + 1 :])
                    )
                    pipert.passes.validate(changed)
                except PlanError:
                    continue
                with pytest.raises(PlanError):
                    pipert.compile(changed)


def test_a_large_program_is_not_searched_for_long():
    rows = [[f"0F{i}" for i in range(2000)] + [f"0B{i}" for i in range(2000)]]
    rows.append([f"1F{i}" for i in reversed(range(2000))] + [f"1B{i}" for i in range(2000)])
    compiled = []

    def count(made):
        compiled.append(made)
        return pipert.compile(made)

    assert mending_swap(program((0, 1), 2000, *map(" ".join, rows)), count) is None
    assert len(compiled) == 12


def test_rows_with_transfers_too():
    with pytest.raises(PlanError, match=r"\nswapping 0SEND_F1 and 0RECV_B0, neighbours on rank 0, would mend it$"):
        plan_from_csv(SMALL.replace("1RECV_F1,1SEND_B0", "1SEND_B0,1RECV_F1"))


def test_the_check_says_it(tmp_path: pathlib.Path):
    file = tmp_path / "my.csv"
    file.write_text("2F0,0F0,2B0,0B0\n1F0,1B0\n")
    refused = pipert_command("check", str(file))
    assert refused.returncode == 1
    assert "my.csv: deadlock at recv_depth 2: the >marked< ops" in refused.stderr
    assert refused.stderr.endswith("\nswapping 2F0 and 0F0, neighbours on rank 0, would mend it\n")
