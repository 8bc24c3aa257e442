"""PyTorch's schedule CSV, in its compute-only form: row r is rank r, a cell is an op or empty, there is no header.

It is what ``torch.distributed.pipelining``'s schedules write with ``_dump_csv(file, format="compute_only")`` and
read with ``_load_csv(file)``.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator, Mapping

from pipert.errors import PlanError
from pipert.ir.op import Op
from pipert.ir.program import Program
from pipert.ops import OpKind

KINDS = (OpKind.FORWARD, OpKind.BACKWARD, OpKind.INPUT_GRAD, OpKind.WEIGHT_GRAD, OpKind.OVERLAP_F_B)
_KIND_TEXTS = ", ".join(kind.text for kind in KINDS)


def to_csv(program: Program) -> str:
    r"""Write ``program`` as PyTorch does, with lines that end in ``\r\n``, and without idle cells.

    Raises:
        PlanError: an op that the file cannot hold (``R``), by name.
    """
    for rank, ops in enumerate(program.ranks):
        for op in ops:
            _check_kind(op, f"rank {rank}")
    file = io.StringIO()
    csv.writer(file).writerows(program.ranks)
    return file.getvalue()


def from_csv(text: str, name: str = "csv") -> Program:
    """Read a program; idle cells are dropped, a (stage, microbatch) belongs to the rank in whose row its ops stand.

    The program is not validated here: ``pipert.passes.validate`` does that, and ``pipert.compile`` calls it.

    Raises:
        PlanError: naming line, column (the number of the cell, from 1) and text of the first cell that is no compute
            op, or of the first whose (stage, microbatch) stands in another row too; a stage or microbatch that
            stands in no row; an empty row.
    """
    holders: dict[tuple[int, int], tuple[int, str]] = {}
    ranks: list[tuple[Op, ...]] = []
    for rank, cells in enumerate(_rows(text)):
        ops = []
        for where, cell in cells:
            op = _read(cell, where)
            ops.append(op)
            for part in op.unpacked:
                key = (part.stage, part.microbatch)
                holder, first = holders.setdefault(key, (rank, f"{cell} at {where}"))
                if holder != rank:
                    expected = f"expected stage {part.stage}, microbatch {part.microbatch} on rank {holder}, as {first}"
                    raise PlanError(f"{where}: {cell}: {expected}, got rank {rank}", rank=rank, op=cell)
        if not ops:
            raise PlanError(f"row {rank + 1} of the CSV holds no op: there is one row per rank", rank=rank)
        ranks.append(tuple(ops))
    if not holders:
        raise PlanError("the CSV holds no op")
    paths, path_of = _paths({key: rank for key, (rank, _) in holders.items()})
    return Program(name, paths, path_of, tuple(ranks))


def _paths(rank_of: Mapping[tuple[int, int], int]) -> tuple[tuple[tuple[int, ...], ...], tuple[int, ...]]:
    """Find the paths of a program, in the order of the first microbatches that take them, and each microbatch's path.

    Args:
        rank_of: the rank in whose row the ops of a (stage, microbatch) stand.
    """
    stages = {stage for stage, _ in rank_of}
    missing = next(stage for stage in itertools.count() if stage not in stages)
    if missing < max(stages):
        raise PlanError(f"stage {missing} stands in no row of the CSV, but stage {max(stages)} does")
    paths: list[dict[int, int]] = []
    path_of = []
    for microbatch in range(1 + max(microbatch for _, microbatch in rank_of)):
        mine = {stage: rank_of[stage, microbatch] for stage in stages if (stage, microbatch) in rank_of}
        fitting = (number for number, path in enumerate(paths) if all(path.get(s, r) == r for s, r in mine.items()))
        number = next(fitting, len(paths))
        if number == len(paths):
            paths.append({})
        paths[number].update(mine)
        path_of.append(number)
    for number, path in enumerate(paths):
        lacking = next((stage for stage in stages if stage not in path), None)
        if lacking is not None:
            raise PlanError(f"microbatch {path_of.index(number)} passes stage {lacking} in no row of the CSV")
    return tuple(tuple(path[stage] for stage in range(len(stages))) for path in paths), tuple(path_of)


def _rows(text: str) -> Iterator[list[tuple[str, str]]]:
    """For each row its cells that are not idle: (where, text)."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            cells = [(f"line {reader.line_num}, column {column}", cell.strip()) for column, cell in enumerate(row, 1)]
            yield [(where, cell) for where, cell in cells if cell]
    except csv.Error as error:
        raise PlanError(f"line {reader.line_num}: not a CSV: {error}") from None


def _read(cell: str, where: str) -> Op:
    try:
        op = Op.parse(cell)
    except PlanError as error:
        raise PlanError(f"{where}: {error}; a schedule's CSV holds {_KIND_TEXTS}", op=cell) from None
    return _check_kind(op, where)


def _check_kind(op: Op, where: str) -> Op:
    for part in (op, *op.parts):
        if part.kind not in KINDS:
            message = f"{where}: {op}: a schedule's CSV holds {_KIND_TEXTS}, but no {part.kind.text}"
            raise PlanError(message, op=str(op))
    return op
