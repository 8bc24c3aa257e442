"""One global order of rows whose transfers already have their places: both ends of a transfer meet in one step."""

from __future__ import annotations

from collections.abc import Sequence

from pipert.errors import PlanError
from pipert.ir.csv import Cell


class Deadlock(PlanError):
    """Ranks wait for each other.

    Attributes:
        places: of the ops that do, as a rank and an index in its row.
    """

    places: tuple[tuple[int, int], ...] = ()


_CONTEXT = 2  # cells shown on both sides of one that waits


def meet(rows: Sequence[Sequence[int]], cells: Sequence[Sequence[Cell]]) -> list[int]:
    """Order the nodes of all ranks so that every rank's row keeps its order; see :mod:`pipert.lowering` for the words.

    Each rank runs its row as one queue, and a transfer when both of its ends are next: a rendezvous.

    Args:
        rows: per rank, items and ``~transfer`` for either end of a transfer; each transfer has its end in two rows.
        cells: the same rows as the file has them, for messages.

    Raises:
        Deadlock: ranks wait for each other; the message shows the cycle.
    """
    order: list[int] = []
    position = [0] * len(rows)
    waiting: dict[int, int] = {}  # per transfer whose one end is next, the rank of that end
    runnable = list(reversed(range(len(rows))))
    while runnable:
        rank = runnable.pop()
        row = rows[rank]
        while position[rank] < len(row):
            node = row[position[rank]]
            if node < 0:
                partner = waiting.pop(node, rank)
                if partner == rank:
                    waiting[node] = rank
                    break
                position[partner] += 1
                runnable.append(partner)
            order.append(node)
            position[rank] += 1
    if waiting:
        raise _deadlock(rows, cells, position)
    return order


def _deadlock(rows: Sequence[Sequence[int]], cells: Sequence[Sequence[Cell]], position: Sequence[int]) -> Deadlock:
    """Follow the ranks that are stuck, each at one end of a transfer, until one comes again."""
    place = {(node, rank): index for rank, row in enumerate(rows) for index, node in enumerate(row) if node < 0}
    ranks_of: dict[int, list[int]] = {}
    for node, rank in place:
        ranks_of.setdefault(node, []).append(rank)
    walk: list[int] = []
    rank = next(rank for rank, row in enumerate(rows) if position[rank] < len(row))
    while rank not in walk:
        walk.append(rank)
        node = rows[rank][position[rank]]
        rank = next(other for other in ranks_of[node] if other != rank)
    cycle = walk[walk.index(rank) :]
    cycle = cycle[cycle.index(min(cycle)) :] + cycle[: cycle.index(min(cycle))]
    marked: dict[int, set[int]] = {rank: {position[rank]} for rank in cycle}
    chain = []
    for rank, partner in zip(cycle, [*cycle[1:], cycle[0]], strict=True):
        node = rows[rank][position[rank]]
        marked[partner].add(place[node, partner])
        chain += [_name(cells[rank][position[rank]]), _name(cells[partner][place[node, partner]])]
    grid = "\n".join(_grid_row(rank, cells[rank], marked[rank]) for rank in sorted(cycle))
    first = cells[cycle[0]][position[cycle[0]]]
    deadlock = Deadlock(
        f"{first[0]}: deadlock: the >marked< ops wait for each other (a row: a rank's ops in order)\n{grid}\n"
        f"{' waits for '.join([*chain, chain[0]])}",
        rank=cycle[0],
        op=str(first[1]),
    )
    deadlock.places = tuple((rank, index) for rank in marked for index in sorted(marked[rank]))
    return deadlock


def _name(cell: Cell) -> str:
    where, op = cell
    return f"{op} ({where})"


def _grid_row(rank: int, row: Sequence[Cell], marked: set[int]) -> str:
    shown = sorted({index for mark in marked for index in range(mark - _CONTEXT, mark + _CONTEXT + 1)})
    shown = [index for index in shown if 0 <= index < len(row)]
    texts = [] if shown[0] == 0 else [".."]
    for before, index in zip([shown[0] - 1, *shown], shown, strict=False):
        texts += [] if index == before + 1 else [".."]
        texts.append(f">{row[index][1]}<" if index in marked else f" {row[index][1]} ")
    texts += [] if shown[-1] == len(row) - 1 else [".."]
    return f"  rank {rank} | {' '.join(texts)}".rstrip()
