"""Which swap of two neighbouring ops would mend a deadlock, where one swap does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pipert.errors import PlanError
from pipert.ir import Op, Program
from pipert.lowering.edges import Edges
from pipert.lowering.order import Replay
from pipert.lowering.slots import windows
from pipert.lowering.work import Work

_MAX_CANDIDATES = 64
_MAX_OPS = 100_000  # over all candidates that are tried

T = TypeVar("T")
Place = tuple[int, int]
"""A rank, and an index in its row."""


@dataclass(frozen=True, slots=True)
class Swap:
    """Two neighbours in a rank's row that are better the other way round."""

    rank: int
    first: str
    second: str

    def __str__(self) -> str:
        return f"swapping {self.first} and {self.second}, neighbours on rank {self.rank}, would mend it"


def mending_swap(program: Program, lower: Callable[[Program], object], recv_depth: int = 2) -> Swap | None:
    """Find a swap with which ``program`` no longer deadlocks.

    Only neighbours near the ops that wait for each other are tried, and not many in a large program.

    Args:
        program: one that is valid, rank by rank.
        lower: compiles a program, or raises PlanError.
        recv_depth: as it was compiled with.

    Returns:
        The first swap that is found; None if there is none nearby, the program does not deadlock, or its ranks meet.
    """
    edges = Edges(program)
    work = Work(program, edges)
    replay = Replay(work, edges, windows(work, recv_depth))
    replay.run()
    if replay.stuck_at is None or work.meetings:
        return None

    def works(rows: Sequence[Sequence[Op]]) -> bool:
        changed = dataclasses.replace(program, ranks=tuple(map(tuple, rows)))
        return accepts(lambda: lower(changed))

    return find_swap(program.ranks, _cycle(work, edges, *replay.stuck_at), works)


def find_swap(
    rows: Sequence[Sequence[T]],
    places: Sequence[Place],
    works: Callable[[list[list[T]]], bool],
    text: Callable[[T], str] = str,
) -> Swap | None:
    """Try to swap neighbours, the nearest to ``places`` first, until ``works`` says that the rows are good.

    ``text`` names what stands in the rows.
    """
    num_candidates = min(_MAX_CANDIDATES, max(1, _MAX_OPS // sum(map(len, rows))))
    changed = [list(row) for row in rows]
    for (rank, index), _ in zip(_candidates(rows, places), range(num_candidates), strict=False):
        row = changed[rank]
        row[index], row[index + 1] = row[index + 1], row[index]
        if works(changed):
            return Swap(rank, text(row[index + 1]), text(row[index]))
        row[index], row[index + 1] = row[index + 1], row[index]
    return None


def accepts(attempt: Callable[[], object]) -> bool:
    """Whether an attempt raises no PlanError."""
    try:
        attempt()
    except PlanError:
        return False
    return True


def _cycle(work: Work, edges: Edges, next_item: Sequence[int], num_emitted: Sequence[int]) -> list[Place]:
    """List the places of the ops at which the ranks of a cycle are stuck, and of those that make what they wait for."""

    def first_missing(read: int) -> int | None:
        """Return the first transfer of an edge that has not taken place, unless ``read`` itself has."""
        edge = edges.of_transfer[read]
        missing = work.edge_transfers[edge][num_emitted[edge] :]
        return missing[0] if read in missing else None

    walk: dict[int, list[Place]] = {}
    rank = next(rank for rank, item in enumerate(next_item) if item < work.rank_begin[rank + 1])
    while rank not in walk:
        walk[rank] = [(rank, next_item[rank] - work.rank_begin[rank])]
        first = next(filter(None, (first_missing(transfer) for transfer in work.reads[next_item[rank]])))
        source, _ = edges.ends[edges.of_transfer[first]]
        maker = work.maker[first]
        walk[rank].append((source, maker - work.rank_begin[source]))
        if (
            maker >= next_item[source]
        ):  # else it has been made, but its window is shut by what `rank` itself has to read
            rank = source
    ranks = list(walk)
    return [place for rank in ranks[ranks.index(rank) :] for place in walk[rank]]


def _candidates(rows: Sequence[Sequence[T]], places: Sequence[Place]) -> Iterator[Place]:
    """Give the first of two neighbours each, once, ever further from the places."""
    seen: set[Place] = set()
    for distance in range(max(map(len, rows))):
        for rank, index in places:
            for first in (index + distance, index - 1 - distance):
                if 0 <= first < len(rows[rank]) - 1 and (rank, first) not in seen:
                    seen.add((rank, first))
                    yield rank, first
