"""The memory of every receive: how many may be posted ahead, and which slot each one fills."""

from __future__ import annotations

import heapq
from collections import deque

from pipert.lowering.edges import NONE, Edges
from pipert.lowering.work import Work


def windows(work: Work, recv_depth: int) -> list[int]:
    """Per transfer, the item after which fewer than ``recv_depth`` earlier ones of its edge are unused.

    Of the readers of the earlier transfers that is the ``recv_depth``-th last, since a rank computes in order.
    """
    freed_by = [NONE] * len(work.reader)
    for transfers in work.edge_transfers:
        last_readers: list[int] = []
        for transfer in transfers:
            if len(last_readers) < recv_depth:
                heapq.heappush(last_readers, work.reader[transfer])
            else:
                freed_by[transfer] = last_readers[0]
                heapq.heappushpop(last_readers, work.reader[transfer])
    return freed_by


class Slots:
    """The slots that an order needs: a receive takes one that is free by then, the longest free first.

    The slots of a (stage, microbatch) are free when the last of its ops has been emitted. Where that op stands right
    before the reader of the receive, another slot is taken: the rank would else do nothing during the transfer.

    Attributes:
        pool: per slot, its pool.
        of_transfer: per transfer, its slot.
        former_key: per transfer, the key that held its slot before; `NONE` if there was none.
    """

    def __init__(self, work: Work, edges: Edges, order: list[int]) -> None:
        self.pool: list[int] = []
        self.of_transfer = [NONE] * len(work.reader)
        self.former_key = [NONE] * len(work.reader)
        self._work = work
        self._pool_of = edges.pool_of_transfer
        self._key_of: list[int] = []  # per slot, the key that it holds or held last
        self._free: list[deque[int]] = [deque() for _ in edges.pools]
        self._num_open = [1] * work.num_keys  # ops that may still use the slots of a key
        closes = [NONE] * len(work.reader)  # per transfer, the key whose slots it helps to free
        for key in range(work.num_keys):
            for transfer in work.closing_transfers(key):
                closes[transfer] = key
                self._num_open[key] += 1
        for node in order:
            if node >= 0:
                for key in work.ends[node]:
                    self._close(key)
            else:
                self._take(~node)
                if closes[~node] != NONE:
                    self._close(closes[~node])

    def _take(self, transfer: int) -> None:
        pool = self._pool_of[transfer]
        key = transfer % self._work.num_keys
        free = self._free[pool]
        if free and self._work.last_compute[self._key_of[free[0]]] < self._work.reader[transfer] - 1:
            slot = free.popleft()
            self.former_key[transfer] = self._key_of[slot]
            self._key_of[slot] = key
        else:
            slot = len(self.pool)
            self.pool.append(pool)
            self._key_of.append(key)
        self.of_transfer[transfer] = slot

    def _close(self, key: int) -> None:
        self._num_open[key] -= 1
        if self._num_open[key] == 0:
            for transfer in (key, self._work.num_keys + key):
                if self.of_transfer[transfer] != NONE:
                    self._free[self._pool_of[transfer]].append(self.of_transfer[transfer])
