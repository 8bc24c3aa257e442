"""One global order of all ops of a program: every op comes after what it waits for."""

from __future__ import annotations

from pipert.lowering.edges import Edges
from pipert.lowering.work import Work


class Replay:
    """The order in which a program's ops can run, a transfer as soon as its window allows.

    The program is replayed, rank by rank in turn: a rank's next item is emitted once what it receives has been
    emitted, a meeting once it is next on every rank, and a transfer as soon as the receive window of its edge allows.
    Nothing that happens in the replay can take away what another rank may do, so if it gets stuck, every order does:
    the rest is then emitted as it stands, and the verifier finds the ops that wait for each other.

    Attributes:
        stuck_at: where it got stuck: per rank, its next item, and per edge, how many transfers had taken place.
    """

    stuck_at: tuple[list[int], list[int]] | None = None

    def __init__(self, work: Work, edges: Edges, freed_by: list[int]) -> None:
        self._work = work
        self._edge_of = edges.of_transfer
        self._edge_destination = [destination for _, destination in edges.ends]
        self._freed_by = freed_by
        self._next_item = work.rank_begin[:-1]  # per rank
        self._num_made = [0] * len(edges.ends)
        self._num_emitted = [0] * len(edges.ends)
        self._arrived = bytearray(len(edges.of_transfer))
        self._order: list[int] = []

    def run(self) -> list[int]:
        """Emit everything."""
        num_nodes = len(self._work.text) + sum(map(len, self._work.edge_transfers))
        while len(self._order) < num_nodes:
            advanced = [self._advance(rank) for rank in range(len(self._next_item))]
            if not any(advanced):
                self.stuck_at = self.stuck_at or (list(self._next_item), list(self._num_emitted))
                for edge in range(len(self._num_made)):
                    self._transfer(edge)
        return self._order

    def _advance(self, rank: int) -> bool:
        item = self._next_item[rank]
        if item == self._work.rank_begin[rank + 1]:
            return False
        if item in self._work.meetings and self.stuck_at is None:
            return self._meet(self._work.text[item])
        reads = self._work.reads[item]
        for transfer in reads:
            if not self._arrived[transfer] and self.stuck_at is None:
                return False
        self._order.append(item)
        self._next_item[rank] += 1
        edge_of = self._edge_of
        for transfer in self._work.makes[item]:
            self._num_made[edge_of[transfer]] += 1
            self._transfer(edge_of[transfer])
        for transfer in reads:
            self._transfer(edge_of[transfer])
        return True

    def _meet(self, text: str) -> bool:
        """Emit a meeting once all ranks have come to it."""
        work = self._work
        for rank, item in enumerate(self._next_item):
            if item == work.rank_begin[rank + 1] or work.text[item] != text:
                return False
        self._order += self._next_item
        self._next_item = [item + 1 for item in self._next_item]
        return True

    def _transfer(self, edge: int) -> None:
        """Emit what is ready on an edge, as far as its window allows."""
        transfers = self._work.edge_transfers[edge]
        used = self._next_item[self._edge_destination[edge]]
        number = self._num_emitted[edge]
        stuck = self.stuck_at is not None
        while number < self._num_made[edge] and (self._freed_by[transfers[number]] < used or stuck):
            transfer = transfers[number]
            self._order.append(~transfer)
            self._arrived[transfer] = True
            number += 1
        self._num_emitted[edge] = number
