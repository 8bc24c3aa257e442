"""The grid that print(program) shows."""

from __future__ import annotations

from rich.style import Style

from pipert import passes, schedules
from pipert.cli.colored_grid import colored
from pipert.ir import Op, Program
from pipert.ir.grid import grid


def program(*rows: str, stage_ranks: tuple[int, ...], num_microbatches: int = 2) -> Program:
    ranks = tuple(tuple(map(Op.parse, row.split())) for row in rows)
    return Program.single_path("mine", stage_ranks, num_microbatches, ranks)


def test_one_row_per_rank_and_one_column_per_step() -> None:
    assert str(schedules.build("1f1b", num_ranks=2, num_microbatches=3)).splitlines() == [
        "1f1b: 2 ranks, 2 stages, 3 microbatches; 12 steps at F = I = W = 1, B = 2",
        "0 F0 F1 .  .  B0--- F2 B1--- .  B2---",
        "1 .  F0 B0--- F1 B1--- F2 B2--- .  .",
    ]


def test_stages_are_named_where_a_rank_holds_several() -> None:
    assert str(schedules.build("zb-v", num_ranks=2, num_microbatches=1)).splitlines()[1:] == [
        "0 0F0 .   .   3F0 3I0 3W0 .   0I0 0W0",
        "1 .   1F0 2F0 .   .   2I0 1I0 2W0 1W0",
    ]


def test_pairs_take_the_time_of_their_parts() -> None:
    rows = program("0F0 (0F1;0B0)OVERLAP_F_B 0B1", "1F0 1B0 1F1 1B1", stage_ranks=(0, 1))
    assert str(rows).splitlines()[1:] == [
        "0 F0 .  .  .  F1+B0--- .  .  .  B1---",
        "1 .  F0 B0--- .  .  .  F1 B1--- .  .",
    ]


def test_a_wide_program_is_cut_with_a_note_unless_asked_for_whole() -> None:
    wide = schedules.build("zb-v", num_ranks=12, num_microbatches=40)
    lines = grid(wide).splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[-1] == "(the first 16 of 251 steps)"
    whole = grid(wide, width=None).splitlines()
    assert len(whole) == 13
    assert all(full.startswith(cut) for full, cut in zip(whole[1:], lines[1:-1], strict=True))


def test_a_program_that_gets_stuck_shows_where() -> None:
    lines = str(program("0F0 0B0 0F1 0B1", "1F1 1F0 1B0 1B1", stage_ranks=(0, 1))).splitlines()
    assert lines[1:] == [
        "0 F0",
        "1 .",
        "stuck: rank 0 waits at 0B0, 3 of its 4 ops left",
        "stuck: rank 1 waits at 1F1, 4 of its 4 ops left",
    ]


def test_a_program_without_ops_is_a_title_and_empty_rows() -> None:
    assert str(program("", stage_ranks=(0,))).splitlines()[1:] == ["0"]


def test_ops_of_a_second_path_have_a_prime() -> None:
    rows = ("0F0 1F1 1B1 0B0", "0F1 1F0 1B0 0B1")
    ranks = tuple(tuple(map(Op.parse, row.split())) for row in rows)
    lines = str(Program("mine", ((0, 1), (1, 0)), (0, 1), ranks)).splitlines()
    assert lines == [
        "mine: 2 ranks, 2 stages, 2 microbatches, 2 paths (F0, F0'); 6 steps at F = I = W = 1, B = 2",
        "0 0F0  1F1' 1B1'----- 0B0------",
        "1 0F1' 1F0  1B0------ 0B1'-----",
    ]


def test_a_terminal_shows_kinds_in_colours() -> None:
    made = schedules.build("zb-v", num_ranks=2, num_microbatches=2)
    text = colored(grid(made), made)
    assert text.plain == f"{grid(made)}\n"
    fills: dict[str, set[object]] = {}
    for span in text.spans:
        if isinstance(span.style, Style) and span.style.bgcolor:
            fills.setdefault(text.plain[span.start + 1], set()).add(span.style.bgcolor)
    assert {kind: len(colors) for kind, colors in fills.items()} == {"F": 2, "I": 2, "W": 2}  # a tone for each chunk
    assert len(set.union(*fills.values())) == 6
    numbers = [span for span in text.spans if isinstance(span.style, Style)]
    assert len(numbers) == sum(len(ops) for ops in made.ranks)


def test_a_split_vocabulary_shows_s_and_t() -> None:
    made = passes.vocab_parallel(schedules.build("1f1b", num_ranks=2, num_microbatches=2), 1)
    lines = str(made).splitlines()
    assert lines == [
        "1f1b-vocab-1: 2 ranks, 2 stages, 2 microbatches; 13 steps at F = I = W = S = T = 1, B = 2",
        "0 F0 F1 S0 T0 .  S1 T1 .  .  B0--- B1---",
        "1 .  F0 S0 T0 F1 S1 T1 B0--- B1--- .  .",
    ]
    spans = [span for span in colored(grid(made), made).spans if isinstance(span.style, Style)]
    assert len(spans) == 2 * 2 * 4


def test_chunks_and_a_split_vocabulary() -> None:
    made = passes.vocab_parallel(schedules.build("zb-v", num_ranks=2, num_microbatches=1), 2)
    assert str(made).splitlines()[1:] == [
        "0 0F0 .   .   3F0 S0  3I0 3W0 T0  0I0 0W0",
        "1 .   1F0 2F0 .   S0  T0  2I0 1I0 2W0 1W0",
    ]
    text = colored(grid(made), made)
    fills = {
        str(span.style.bgcolor)
        for span in text.spans
        if isinstance(span.style, Style) and "S0" in text.plain[span.start : span.end]
    }
    assert len(fills) == 1  # no tone of a chunk


def test_collectives_take_no_room() -> None:
    rows = program("0UNSHARD 0F0 0B0 0REDUCE_GRAD", "1F0 1B0", stage_ranks=(0, 1), num_microbatches=1)
    assert str(rows).splitlines()[1:] == ["0 F0 .  .  .  B0---", "1 .  F0 B0--- .  ."]
