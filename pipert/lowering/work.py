"""What every op of a program reads and makes."""

from __future__ import annotations

from pipert.ir import Op, Program
from pipert.lowering.edges import NONE, Edges
from pipert.ops import LaneKind, OpKind, Scope

_FORWARD, _BACKWARD, _INPUT_GRAD, _WEIGHT_GRAD = OpKind.FORWARD, OpKind.BACKWARD, OpKind.INPUT_GRAD, OpKind.WEIGHT_GRAD

_BROUGHT_BY = {
    OpKind.SCORE: OpKind.VBCAST,
    OpKind.SCORE_W: OpKind.VSTATS,
    OpKind.EMBED_W: OpKind.VEMBED_GRAD,
}
"""The meeting that brings what a pass of the vocabulary reads."""


class Work:
    """A program as numbers; the lists are per item unless they say otherwise.

    Attributes:
        text: of the op.
        reads: transfers.
        makes: transfers, in order.
        ends: keys of which it is the last compute op.
        waits: items on another lane of its rank that it waits for; of the few that have some.
        collectives: the items that are no compute ops.
        meetings: the items that all ranks run at once.
        rank_begin: per rank, its first item; and the number of items.
        reader: per transfer, the item that reads it first.
        maker: per transfer, the item that makes it.
        last_compute: per key, its last compute op.
        edge_transfers: per edge, its transfers in the order of their makers.
    """

    def __init__(self, program: Program, edges: Edges) -> None:
        self.num_stages = program.num_stages
        self.num_microbatches = program.num_microbatches
        self.num_keys = program.num_stages * program.num_microbatches
        self.forward_only = edges.forward_only
        self.text: list[str] = []
        self.reads: list[tuple[int, ...]] = []
        self.makes: list[tuple[int, ...]] = []
        self.ends: list[tuple[int, ...]] = []
        self.waits: dict[int, list[int]] = {}
        self.collectives: set[int] = set()
        self.meetings: set[int] = set()
        self.rank_begin = [0]
        self.num_ranks = program.num_ranks
        self.reader = [NONE] * len(edges.of_transfer)
        self.maker = [NONE] * len(edges.of_transfer)
        self.last_compute = [NONE] * self.num_keys
        self.edge_transfers: list[list[int]] = [[] for _ in edges.ends]
        for ops in program.ranks:
            for op in ops:
                self._add(op, edges.of_transfer)
            if len(self.collectives) > 0:
                self._add_waits(ops)
                self._add_meetings(program, ops)
            self.rank_begin.append(len(self.text))

    def _add(self, op: Op, edge_of: list[int]) -> None:
        num_stages, num_microbatches, num_keys = self.num_stages, self.num_microbatches, self.num_keys
        item = len(self.text)
        reads: tuple[int, ...] = ()
        makes: tuple[int, ...] = ()
        ends: tuple[int, ...] = ()
        for part in op.parts or (op,):
            kind, stage, microbatch = part.kind, part.stage, part.microbatch
            key = stage * num_microbatches + microbatch
            if kind is _WEIGHT_GRAD or kind is _BACKWARD or (kind is _FORWARD and self.forward_only):
                ends += (key,)
                self.last_compute[key] = item
            if kind is _FORWARD:
                source, target = key, key + num_microbatches if stage + 1 < num_stages else NONE
            elif kind is _BACKWARD or kind is _INPUT_GRAD:
                source, target = num_keys + key, num_keys + key - num_microbatches if stage > 0 else NONE
            elif kind.scope is Scope.RANK:
                source, target = self._between_ranks(part)
            else:
                continue
            if source != NONE and edge_of[source] != NONE:
                reads += (source,)
                self.reader[source] = item
            if target != NONE and edge_of[target] != NONE:
                makes += (target,)
                self.maker[target] = item
                self.edge_transfers[edge_of[target]].append(target)
        if op.kind.lane is LaneKind.COLLECTIVE:
            self.collectives.add(item)
        self.text.append(str(op))
        self.reads.append(reads)
        self.makes.append(makes)
        self.ends.append(ends)

    def _between_ranks(self, op: Op) -> tuple[int, int]:
        """Return the transfers that an op for a rank reads and makes: the norms go up the ranks, the total down."""
        rank, num_ranks = op.stage, self.num_ranks
        norm_of_0, total_of_0 = 2 * self.num_keys, 2 * self.num_keys + num_ranks
        if op.kind is OpKind.NORM:
            return norm_of_0 + rank, norm_of_0 + rank + 1 if rank + 1 < num_ranks else NONE
        if op.kind is OpKind.VALIDATE:
            return total_of_0 + rank, total_of_0 + rank - 1 if rank > 0 else NONE
        return NONE, NONE

    def _add_waits(self, ops: tuple[Op, ...]) -> None:
        """Find what a rank's collectives wait for, and which of its compute ops wait for them."""
        unshard: dict[int, int] = {}  # this and the next two: per stage, the last such item
        last_compute: dict[int, int] = {}
        last_grad: dict[int, int] = {}
        for item, op in enumerate(ops, self.rank_begin[-1]):
            needed: int | None
            if op.kind is OpKind.UNSHARD:
                unshard[op.stage] = item
            elif op.kind is OpKind.RESHARD or op.kind is OpKind.REDUCE_GRAD:
                needed = (last_compute if op.kind is OpKind.RESHARD else last_grad).get(op.stage)
                if needed is not None:
                    self.waits[item] = [needed]
            elif op.kind.scope is not Scope.MEETING:
                for part in op.unpacked:
                    needed = unshard.pop(part.stage, None)  # the lane's order is enough for those that come later
                    if needed is not None:
                        self.waits.setdefault(item, []).append(needed)
                    last_compute[part.stage] = item
                    if part.kind is _BACKWARD or part.kind is _WEIGHT_GRAD:
                        last_grad[part.stage] = item

    def _add_meetings(self, program: Program, ops: tuple[Op, ...]) -> None:
        """Find what meetings of all ranks wait for, and what waits for them.

        A meeting is begun by its rank's thread, after the compute op before it in the row. Every pass of the
        vocabulary waits for the meeting that brings what it reads.
        """
        ends = (0, OpKind.VEMBED), (program.num_stages - 1, OpKind.VGRAD)
        met: dict[tuple[OpKind, int], int] = {}
        before: int | None = None
        for item, op in enumerate(ops, self.rank_begin[-1]):
            if op.kind.scope is Scope.MEETING:
                self.meetings.add(item)
                met[op.kind, op.microbatch] = item
                if before is not None:
                    self.waits[item] = [before]
                continue
            if op.kind.lane is LaneKind.COLLECTIVE:
                continue
            before = item
            brings = [(_BROUGHT_BY[op.kind], op.microbatch)] if op.kind in _BROUGHT_BY else []
            for part in op.unpacked:
                forward = part.kind is _FORWARD
                if forward or part.kind is _BACKWARD or part.kind is _INPUT_GRAD:
                    stage, meeting = ends[0 if forward else 1]
                    if part.stage == stage:
                        brings.append((meeting, part.microbatch))
            needed = [met[key] for key in brings if key in met]
            if needed:
                self.waits.setdefault(item, []).extend(needed)

    def closing_transfers(self, key: int) -> list[int]:
        """List the transfers out of a (stage, microbatch) that may outlast its last compute op."""
        if self.forward_only:
            transfer = key + self.num_microbatches
            return [transfer] if transfer < self.num_keys and self.maker[transfer] != NONE else []
        transfer = self.num_keys + key - self.num_microbatches
        return [transfer] if transfer >= self.num_keys and self.maker[transfer] != NONE else []
