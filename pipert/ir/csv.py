"""PyTorch's schedule CSV, in its compute-only form: row r is rank r, a cell is an op or empty, there is no header.

It is what ``torch.distributed.pipelining``'s schedules write with ``_dump_csv(file, format="compute_only")`` and
read with ``_load_csv(file)``.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from pipert.errors import PlanError
from pipert.ir.op import Op
from pipert.ir.program import Program
from pipert.ir.rows import from_rows
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
    cells = [[(where, _read(cell, where)) for where, cell in row] for row in _rows(text)]
    ops = [[op for _, op in row] for row in cells]
    return from_rows(name, ops, where=lambda rank, index: cells[rank][index][0])


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
