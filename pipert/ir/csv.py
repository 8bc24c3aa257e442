"""PyTorch's schedule CSV, in its compute-only form: row r is rank r, a cell is an op or empty, there is no header.

It is what ``torch.distributed.pipelining``'s schedules write with ``_dump_csv(file, format="compute_only")`` and
read with ``_load_csv(file)``. :mod:`pipert.lowering.lowered_csv` has the other form, which holds transfers too.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Sequence

from pipert.errors import PlanError
from pipert.ir.op import Op
from pipert.ir.program import Program
from pipert.ir.rows import from_rows
from pipert.ops import OpKind

KINDS = (OpKind.FORWARD, OpKind.BACKWARD, OpKind.INPUT_GRAD, OpKind.WEIGHT_GRAD, OpKind.OVERLAP_F_B)

Cell = tuple[str, Op]
"""An op in a file, after its place there: ``"line 1, column 3"``; a column is the number of a cell, from 1."""


def to_csv(program: Program) -> str:
    r"""Write ``program`` as PyTorch does, with lines that end in ``\r\n``, and without idle cells.

    Raises:
        PlanError: an op that the file cannot hold (``R``), by name.
    """
    return write_rows(program.ranks, KINDS)


def from_csv(text: str, name: str = "csv") -> Program:
    """Read a program; idle cells are dropped, a (stage, microbatch) belongs to the rank in whose row its ops stand.

    The program is not validated here: ``pipert.passes.validate`` does that, and ``pipert.compile`` calls it.

    Raises:
        PlanError: naming line, column and text of the first cell that is no compute op, or of the first whose (stage,
            microbatch) stands in another row too; a stage or microbatch that stands in no row; an empty row.
    """
    return program_of(name, read_rows(text, KINDS))


def program_of(name: str, cells: Sequence[Sequence[Cell]]) -> Program:
    """Make the program of a file's rows; see :func:`from_csv`."""
    ops = [[op for _, op in row] for row in cells]
    return from_rows(name, ops, where=lambda rank, index: cells[rank][index][0])


def write_rows(rows: Sequence[Sequence[Op]], kinds: Collection[OpKind]) -> str:
    """Write the rows of all ranks.

    Raises:
        PlanError: an op that is not of ``kinds``, by name.
    """
    for rank, ops in enumerate(rows):
        for op in ops:
            _check_kind(op, f"rank {rank}", kinds)
    file = io.StringIO()
    csv.writer(file).writerows(rows)
    return file.getvalue()


def read_rows(text: str, kinds: Collection[OpKind]) -> list[list[Cell]]:
    """Read the rows of all ranks, without their idle cells.

    Raises:
        PlanError: naming line, column and text of the first cell that is no op of ``kinds``.
    """
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows = []
    try:
        for row in reader:
            cells = [(f"line {reader.line_num}, column {column}", cell.strip()) for column, cell in enumerate(row, 1)]
            rows.append([(where, _read(cell, where, kinds)) for where, cell in cells if cell])
    except csv.Error as error:
        raise PlanError(f"line {reader.line_num}: not a CSV: {error}") from None
    return rows


def _read(cell: str, where: str, kinds: Collection[OpKind]) -> Op:
    try:
        op = Op.parse(cell)
    except PlanError as error:
        raise PlanError(f"{where}: {error}; this CSV holds {_texts(kinds)}", op=cell) from None
    return _check_kind(op, where, kinds)


def _check_kind(op: Op, where: str, kinds: Collection[OpKind]) -> Op:
    for part in (op, *op.parts):
        if part.kind not in kinds:
            raise PlanError(f"{where}: {op}: this CSV holds {_texts(kinds)}, but no {part.kind.text}", op=str(op))
    return op


def _texts(kinds: Collection[OpKind]) -> str:
    return ", ".join(kind.text for kind in kinds)
