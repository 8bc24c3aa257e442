"""A program as text: one row per rank, one column per unit of time."""

from __future__ import annotations

from pipert.ir.op import Op
from pipert.ir.program import Program
from pipert.ir.replay import compute_rows, replay
from pipert.ops import OpKind

_IDLE = "."


def grid(program: Program, *, width: int | None = 100) -> str:
    """Draw the compute ops of ``program`` on an ideal clock, where F, I, W, R, S and T take one step and B takes two.

    The stage is left out of the ops where rank r holds stage r and no other, and of S and T, which are of the row's
    rank. Lookups in a split embedding and meetings of all ranks take no time, and are left out. An op has a prime where
    its microbatch takes the second path (two for the third). A dash continues an op to the left of it, a dot is idle. A
    program that cannot run to its end is drawn as far as it gets, with the ops that are stuck.

    Args:
        program: need not be valid.
        width: columns to cut at, with a note of what is missing; None never cuts.
    """
    rows = replay(program)
    num_steps = max((row[-1].end for row in rows if row), default=0)
    plain = program.paths == (tuple(range(program.num_ranks)),)
    texts = [[(_cell_text(program, timed.op, plain), timed.start, timed.end) for timed in row] for row in rows]
    cell = max((_cell_width(len(text), end - start) for row in texts for text, start, end in row), default=1)
    label = len(str(program.num_ranks - 1))

    shown = num_steps if width is None else min(num_steps, max(1, (width - label) // (cell + 1)))
    lines = [_title(program, num_steps)]
    for rank, row in enumerate(texts):
        lines.append(f"{rank:{label}} {_row_text(row, cell, num_steps)[: shown * (cell + 1)]}".rstrip())
    if shown < num_steps:
        lines.append(f"(the first {shown} of {num_steps} steps)")
    lines += _stuck(program, [len(row) for row in rows])
    return "\n".join(lines)


def _title(program: Program, num_steps: int) -> str:
    counts = ((program.num_ranks, "rank"), (program.num_stages, "stage"), (program.num_microbatches, "microbatch"))
    sizes = ", ".join(f"{n} {noun}{'' if n == 1 else 'es' if noun.endswith('ch') else 's'}" for n, noun in counts)
    paths = f", {len(program.paths)} paths (F0, F0')" if len(program.paths) > 1 else ""
    split = " = S = T" if any(op.kind is OpKind.SCORE for op in program.ranks[0]) else ""
    return f"{program.name}: {sizes}{paths}; {num_steps} steps at F = I = W{split} = 1, B = 2"


def _cell_text(program: Program, op: Op, plain: bool) -> str:
    plain = plain or not op.unpacked
    texts = [f"{part.kind.text}{part.microbatch}" if plain else str(part) for part in op.unpacked or (op,)]
    if len(program.paths) > 1:
        primes = ["'" * path for path in _paths(program, op)]
        texts = [text + prime for text, prime in zip(texts, primes, strict=True)]
    return "+".join(texts)


def _paths(program: Program, op: Op) -> list[int]:
    """Return the path of each part; 0 where a program that is not valid names no path."""
    count = program.num_microbatches
    return [program.path_of[part.microbatch] if 0 <= part.microbatch < count else 0 for part in op.unpacked]


def _cell_width(length: int, num_steps: int) -> int:
    """Find the least width at which ``num_steps`` cells, with a blank between two, hold ``length`` characters."""
    return -(-(length + 1) // num_steps) - 1


def _row_text(row: list[tuple[str, int, int]], cell: int, num_steps: int) -> str:
    idle = _IDLE.ljust(cell + 1)
    text = ""
    now = 0
    for label, start, end in row:
        filler = " " if end - start == 1 else "-"
        text += idle * (start - now) + label.ljust((end - start) * (cell + 1) - 1, filler) + " "
        now = end
    return text + idle * (num_steps - now)


def _stuck(program: Program, num_done: list[int]) -> list[str]:
    return [
        f"stuck: rank {rank} waits at {ops[done]}, {len(ops) - done} of its {len(ops)} ops left"
        for rank, (ops, done) in enumerate(zip(compute_rows(program), num_done, strict=True))
        if done < len(ops)
    ]
