"""PyTorch's schedule CSV in its lowered form, which holds transfers and collectives too: a plan's rows, rank by rank.

It is what ``torch.distributed.pipelining``'s schedules write with ``_dump_csv(file, format="compute_comms")`` and
read with ``_load_csv(file, format="compute_comms")``. A row holds a rank's ops in its issue order.

Such a file says in which order a rank does what, not what waits for what, nor where messages go: lanes, dependencies,
slots and the receive window are found anew, and the plan is verified like any other.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from pipert.errors import PlanError
from pipert.ir import Op, Program
from pipert.ir.csv import KINDS, Cell, program_of, read_rows, write_rows
from pipert.lowering.edges import NONE, Edges
from pipert.lowering.meet import Deadlock, meet
from pipert.lowering.mend import accepts, find_swap
from pipert.lowering.rows import Rows, transfer_texts
from pipert.lowering.slots import Slots, windows
from pipert.lowering.work import Work
from pipert.ops import LaneKind, OpKind
from pipert.passes import validate
from pipert.plan import Plan

_TRANSFERS = (OpKind.SEND_F, OpKind.RECV_F, OpKind.SEND_B, OpKind.RECV_B)
LOWERED_KINDS = (*KINDS, *_TRANSFERS, OpKind.UNSHARD, OpKind.RESHARD, OpKind.REDUCE_GRAD)


def is_lowered(text: str) -> bool:
    """Whether a schedule's CSV is in its lowered form: whether it holds any op that only that form has."""
    return any(kind.text in text for kind in LOWERED_KINDS if kind not in KINDS)


def plan_to_csv(plan: Plan) -> str:
    r"""Write a plan's rows as PyTorch does, with lines that end in ``\r\n``.

    Raises:
        PlanError: an op that the file cannot hold (``R``), by name.
    """
    rows: list[list[Op]] = [[] for _ in range(plan.num_ranks)]
    for op, lane in zip(plan.ops, plan.op_lane, strict=True):
        rows[plan.lanes[lane].rank].append(op)
    return write_rows(rows, LOWERED_KINDS)


def plan_from_csv(text: str, name: str = "csv") -> Plan:
    """Read a plan in which every rank keeps the order of its row; idle cells are dropped.

    ``recv_depth`` is the least with which the rows' receives may be posted where they stand.

    Raises:
        PlanError: a cell that is no op; compute ops that are incomplete or misplaced; a transfer that is missing,
            doubled, or in the wrong place; rows that wait for each other. Faults of a cell name its line, column and
            text.
    """
    cells = read_rows(text, LOWERED_KINDS)
    try:
        return _read_plan(cells, name)
    except Deadlock as error:
        swap = find_swap(
            cells, error.places, lambda changed: accepts(lambda: _read_plan(changed, name)), lambda cell: str(cell[1])
        )
        hint = f"\n{swap}" if swap else ""
        raise PlanError(f"{error}{hint}", rank=error.rank, op=error.op) from None


def _read_plan(cells: Sequence[Sequence[Cell]], name: str) -> Plan:
    where = {str(part): place for row in cells for place, op in row for part in (op, *op.parts)}
    try:
        program = program_of(name, [[cell for cell in row if cell[1].kind not in _TRANSFERS] for row in cells])
        validate(program)
        return _lower(program, cells)
    except PlanError as error:
        if str(error).startswith("line ") or error.op not in where:
            raise
        raise PlanError(f"{where[error.op]}: {error}", rank=error.rank, op=error.op) from None


def _lower(program: Program, cells: Sequence[Sequence[Cell]]) -> Plan:
    edges = Edges(program)
    work = Work(program, edges)
    rows = _Transfers(program, work, edges).nodes(cells)
    order = meet(rows, cells)
    recv_depth = _recv_depth(work, edges, order)
    freed_by = windows(work, recv_depth)
    return Rows(work, edges, order, freed_by, Slots(work, edges, order)).plan(program, recv_depth)


def _recv_depth(work: Work, edges: Edges, order: Sequence[int]) -> int:
    """Return the most receives of one edge that are posted before they are used."""
    deepest = 1
    unused = [0] * len(edges.ends)
    for node in order:
        if node < 0:
            edge = edges.of_transfer[~node]
            unused[edge] += 1
            deepest = max(deepest, unused[edge])
        else:
            for transfer in work.reads[node]:
                unused[edges.of_transfer[transfer]] -= 1
    return deepest


class _Transfers:
    """The transfers that a program needs, to be found in the rows of a file."""

    def __init__(self, program: Program, work: Work, edges: Edges) -> None:
        self._program = program
        self._work = work
        self._edges = edges
        self._sends: dict[int, str] = {}  # per transfer found, where its SEND stands
        self._recvs: dict[int, str] = {}
        self._item_cell: list[Cell] = []

    def nodes(self, cells: Sequence[Sequence[Cell]]) -> list[list[int]]:
        """Give each row as items, and ``~transfer`` for either end of a transfer; all ends are where they must be."""
        rows = [[self._node(rank, cell) for cell in row] for rank, row in enumerate(cells)]
        for transfers in self._work.edge_transfers:
            for transfer in transfers:
                self._check_found(transfer)
        for rank, (row, nodes) in enumerate(zip(cells, rows, strict=True)):
            self._check_row(rank, row, nodes)
        return rows

    def _node(self, rank: int, cell: Cell) -> int:
        where, op = cell
        if op.kind not in _TRANSFERS:
            self._item_cell.append(cell)
            return len(self._item_cell) - 1
        transfer = self._transfer(rank, cell)
        found = self._sends if op.kind.lane is LaneKind.SEND else self._recvs
        if transfer in found:
            raise _fault(rank, cell, "it once", f"it at {found[transfer]} too")
        found[transfer] = where
        return ~transfer

    def _transfer(self, rank: int, cell: Cell) -> int:
        program, op = self._program, cell[1]
        if op.stage >= program.num_stages:
            raise _fault(rank, cell, f"a stage below {program.num_stages}", str(op.stage))
        if op.microbatch >= program.num_microbatches:
            raise _fault(rank, cell, f"a microbatch below {program.num_microbatches}", str(op.microbatch))
        holder = program.rank_of(op.stage, op.microbatch)
        if holder != rank:
            raise _fault(rank, cell, f"it on rank {holder}", f"it on rank {rank}")
        forward = op.kind in (OpKind.SEND_F, OpKind.RECV_F)
        reader = op.stage + {OpKind.SEND_F: 1, OpKind.SEND_B: -1}.get(op.kind, 0)  # the stages at its ends
        maker = reader - 1 if forward else reader + 1
        if min(reader, maker) < 0 or max(reader, maker) >= program.num_stages:
            raise _fault(rank, cell, "no transfer beyond the ends of the model", "one")
        if not forward and self._work.forward_only:
            raise _fault(rank, cell, "no gradient in a plan without backward", "one")
        transfer = reader * program.num_microbatches + op.microbatch + (0 if forward else self._work.num_keys)
        if self._edges.of_transfer[transfer] == NONE:
            raise _fault(rank, cell, "no transfer between stages of one rank", f"one of stages {maker} and {reader}")
        return transfer

    def _check_found(self, transfer: int) -> None:
        send, recv = transfer_texts(self._work, transfer)
        for found, item, expected in (
            (self._sends, self._work.maker[transfer], f"{send} after it"),
            (self._recvs, self._work.reader[transfer], f"{recv} before it"),
        ):
            if transfer not in found:
                rank = bisect.bisect_right(self._work.rank_begin, item) - 1
                raise _fault(rank, self._item_cell[item], expected, "none")

    def _check_row(self, rank: int, row: Sequence[Cell], nodes: Sequence[int]) -> None:
        """Check that what is made is sent afterwards, in the order in which it was made, and read after its RECV."""
        work, edge_of = self._work, self._edges.of_transfer
        next_item = work.rank_begin[rank]
        num_sent = dict.fromkeys(range(len(self._edges.ends)), 0)
        for cell, node in zip(row, nodes, strict=True):
            if node >= 0:
                next_item = node + 1
            elif cell[1].kind.lane is LaneKind.RECV:
                where, op = self._item_cell[work.reader[~node]]
                if work.reader[~node] < next_item:
                    raise _fault(rank, cell, f"it before {op}", f"{op} at {where}")
            else:
                where, op = self._item_cell[work.maker[~node]]
                if work.maker[~node] >= next_item:
                    raise _fault(rank, cell, f"it after {op}", f"{op} at {where}")
                edge = edge_of[~node]
                first = work.edge_transfers[edge][num_sent[edge]]
                if first != ~node:
                    send, _ = transfer_texts(work, first)
                    expected = f"{send} before it, as their edge has the order of the compute ops"
                    raise _fault(rank, cell, expected, f"{send} at {self._sends[first]}")
                num_sent[edge] += 1


def _fault(rank: int, cell: Cell, expected: str, found: str) -> PlanError:
    where, op = cell
    return PlanError(f"{where}: {op}: expected {expected}, found {found}", rank=rank, op=str(op))
