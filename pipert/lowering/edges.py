"""Which edge each transfer takes, and which slots may hold it."""

from __future__ import annotations

from pipert.ir import Program
from pipert.ops import LaneKind, OpKind, Scope
from pipert.plan import Lane, Slot

NONE = -1
"""In lists of edges, items and keys: there is none."""


class Edges:
    """The directed edges between ranks, all lanes, and what kinds of slots there are.

    Attributes:
        forward_only: no op of the program computes a gradient.
        ends: per edge, its source and its destination.
        of_transfer: per transfer, its edge; `NONE` where nothing is transferred.
        pool_of_transfer: per transfer, the pool of slots that may hold it.
        pools: per pool, what its slots look like. They belong to one edge, whose sender writes into them.
        lanes: those of the plan.
    """

    def __init__(self, program: Program) -> None:
        compute = LaneKind.COMPUTE
        parts = (part for ops in program.ranks for op in ops if op.kind.lane is compute for part in op.unpacked)
        self.forward_only = all(part.kind is OpKind.FORWARD for part in parts)
        numbers: dict[tuple[int, int], int] = {}
        pools: dict[tuple[int, Slot], int] = {}

        def edge(source: int, destination: int) -> int:
            return NONE if source == destination else numbers.setdefault((source, destination), len(numbers))

        def edges(path: tuple[int, ...]) -> list[int]:
            inputs = [NONE, *map(edge, path, path[1:])]
            grads = [NONE] * len(path) if self.forward_only else [*map(edge, path[1:], path), NONE]
            return inputs + grads

        def pool_numbers(path: tuple[int, ...]) -> list[int]:
            slots = [Slot(rank, stage, payload) for payload in ("input", "grad") for stage, rank in enumerate(path)]
            return [pools.setdefault(pool, len(pools)) for pool in zip(edges(path), slots, strict=True)]

        def per_transfer(of_path: list[list[int]]) -> list[int]:
            return [row[path] for row in zip(*of_path, strict=True) for path in program.path_of]

        self.of_transfer = per_transfer([edges(path) for path in program.paths])
        self.pool_of_transfer = per_transfer([pool_numbers(path) for path in program.paths])
        if any(op.kind.scope is Scope.RANK for ops in program.ranks for op in ops):
            last = program.num_ranks - 1
            norms = [(edge(r - 1, r) if r > 0 else NONE, Slot(r, r, "norm")) for r in range(last + 1)]
            totals = [(edge(r + 1, r) if r < last else NONE, Slot(r, r, "total")) for r in range(last + 1)]
            self.of_transfer += [number for number, _ in norms + totals]
            self.pool_of_transfer += [pools.setdefault(pool, len(pools)) for pool in norms + totals]
        self.pools = tuple(slot for _, slot in pools)
        self.ends = tuple(numbers)
        self.lanes = _lanes(program, self.ends)


def _lanes(program: Program, edges: tuple[tuple[int, int], ...]) -> tuple[Lane, ...]:
    lanes = [Lane(rank, LaneKind.COMPUTE, NONE) for rank in range(program.num_ranks)]
    lanes += [Lane(source, LaneKind.SEND, destination) for source, destination in edges]
    lanes += [Lane(destination, LaneKind.RECV, source) for source, destination in edges]
    for rank, ops in enumerate(program.ranks):
        if any(op.kind.lane is LaneKind.COLLECTIVE for op in ops):
            lanes.append(Lane(rank, LaneKind.COLLECTIVE, NONE))
    kinds = list(LaneKind)
    return tuple(sorted(lanes, key=lambda lane: (lane.rank, kinds.index(lane.kind), lane.peer)))
