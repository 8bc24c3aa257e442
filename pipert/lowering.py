"""Lowering: a program becomes a plan with transfers, lanes, dependencies and slots.

The program is replayed, rank by rank in turn: a rank's next compute op is emitted once what it receives has been
emitted, and a transfer as soon as the receive window of its edge allows. The order of emission is the plan's global
order. Nothing that happens in the replay can take away what another rank may do, so if it gets stuck, every order
does: the rest is then emitted as it stands, and the verifier finds the ops that wait for each other.

Words in this file: a *key* is ``stage * num_microbatches + microbatch``; a *transfer* is the key of the stage that
receives, plus ``num_keys`` if it carries a gradient; a *compute id* counts the compute ops of all ranks, one rank
after another. Which edge a transfer takes and which slots may hold it follow from the path of its microbatch.
"""

from __future__ import annotations

import heapq
from collections import deque

from pipert.errors import ConfigError
from pipert.ir import Op, Program
from pipert.ops import LaneKind, OpKind
from pipert.passes import validate
from pipert.plan import Lane, Plan, Slot

_NONE = -1
_FORWARD, _BACKWARD, _INPUT_GRAD, _WEIGHT_GRAD = OpKind.FORWARD, OpKind.BACKWARD, OpKind.INPUT_GRAD, OpKind.WEIGHT_GRAD


def compile(program: Program, *, recv_depth: int = 2) -> Plan:
    """Lower ``program`` to a verified plan.

    Args:
        program: the compute ops of every rank.
        recv_depth: how many receives of one directed edge may be posted before they are used; at least 1.

    Raises:
        ConfigError: ``recv_depth`` is less than 1.
        PlanError: the program is incomplete, or would deadlock with rendezvous sends; the message shows the wait cycle.
    """
    if recv_depth < 1:
        raise ConfigError(f"recv_depth must be at least 1, not {recv_depth}")
    validate(program)
    edges = _Edges(program)
    work = _Work(program, edges)
    replay = _Replay(work, edges, recv_depth)
    replay.run()
    return _Rows(work, edges, replay).plan(program, recv_depth)


class _Edges:
    """The directed edges between ranks, all lanes, and what kinds of slots there are."""

    def __init__(self, program: Program) -> None:
        self.forward_only = all(part.kind is _FORWARD for ops in program.ranks for op in ops for part in op.unpacked)
        numbers: dict[tuple[int, int], int] = {}
        pools: dict[tuple[int, Slot], int] = {}  # a slot belongs to one edge, whose sender writes into it

        def edge(source: int, destination: int) -> int:
            return _NONE if source == destination else numbers.setdefault((source, destination), len(numbers))

        def edges(path: tuple[int, ...]) -> list[int]:
            inputs = [_NONE, *map(edge, path, path[1:])]
            grads = [_NONE] * len(path) if self.forward_only else [*map(edge, path[1:], path), _NONE]
            return inputs + grads

        def pool_numbers(path: tuple[int, ...]) -> list[int]:
            slots = [Slot(rank, stage, payload) for payload in ("input", "grad") for stage, rank in enumerate(path)]
            return [pools.setdefault(pool, len(pools)) for pool in zip(edges(path), slots, strict=True)]

        def per_transfer(of_path: list[list[int]]) -> list[int]:
            return [row[path] for row in zip(*of_path, strict=True) for path in program.path_of]

        self.of_transfer = per_transfer([edges(path) for path in program.paths])  # _NONE where nothing is transferred
        self.pool_of_transfer = per_transfer([pool_numbers(path) for path in program.paths])
        self.pools = tuple(slot for _, slot in pools)  # the slots of a pool are all like this one
        self.ends = tuple(numbers)
        lanes = [Lane(rank, LaneKind.COMPUTE, _NONE) for rank in range(program.num_ranks)]
        lanes += [Lane(source, LaneKind.SEND, destination) for source, destination in numbers]
        lanes += [Lane(destination, LaneKind.RECV, source) for source, destination in numbers]
        kinds = list(LaneKind)
        self.lanes = tuple(sorted(lanes, key=lambda lane: (lane.rank, kinds.index(lane.kind), lane.peer)))


class _Work:
    """What every compute op reads and makes; the lists are per compute id unless they say otherwise."""

    def __init__(self, program: Program, edges: _Edges) -> None:
        self.num_stages = program.num_stages
        self.num_microbatches = program.num_microbatches
        self.num_keys = program.num_stages * program.num_microbatches
        self.forward_only = edges.forward_only
        self.text: list[str] = []
        self.reads: list[list[int]] = []  # transfers
        self.makes: list[list[int]] = []  # transfers, in order
        self.ends: list[list[int]] = []  # keys of which it is the last compute op
        self.rank_begin = [0]  # per rank
        self.reader = [_NONE] * (2 * self.num_keys)  # per transfer, the compute id that reads it first
        self.maker = [_NONE] * (2 * self.num_keys)  # per transfer
        self.last_compute = [_NONE] * self.num_keys  # per key
        self.edge_transfers: list[list[int]] = [[] for _ in edges.ends]  # per edge, in the order of their makers
        for ops in program.ranks:
            for op in ops:
                self._add(op, edges.of_transfer)
            self.rank_begin.append(len(self.text))

    def _add(self, op: Op, edge_of: list[int]) -> None:
        num_stages, num_microbatches, num_keys = self.num_stages, self.num_microbatches, self.num_keys
        compute_id = len(self.text)
        reads: list[int] = []
        makes: list[int] = []
        ends: list[int] = []
        for part in op.unpacked:
            kind, stage, microbatch = part.kind, part.stage, part.microbatch
            key = stage * num_microbatches + microbatch
            if kind is _WEIGHT_GRAD or kind is _BACKWARD or (kind is _FORWARD and self.forward_only):
                ends.append(key)
                self.last_compute[key] = compute_id
            if kind is _FORWARD:
                source, target, outermost = key, key + num_microbatches, num_stages - 1
            elif kind is _BACKWARD or kind is _INPUT_GRAD:
                source, target, outermost = num_keys + key, num_keys + key - num_microbatches, 0
            else:
                continue
            if edge_of[source] != _NONE:
                reads.append(source)
                self.reader[source] = compute_id
            if stage != outermost and edge_of[target] != _NONE:
                makes.append(target)
                self.maker[target] = compute_id
                self.edge_transfers[edge_of[target]].append(target)
        self.text.append(str(op))
        self.reads.append(reads)
        self.makes.append(makes)
        self.ends.append(ends)

    def closing_transfers(self, key: int) -> list[int]:
        """List the transfers out of a (stage, microbatch) that may outlast its last compute op."""
        if self.forward_only:
            transfer = key + self.num_microbatches
            return [transfer] if transfer < self.num_keys and self.maker[transfer] != _NONE else []
        transfer = self.num_keys + key - self.num_microbatches
        return [transfer] if transfer >= self.num_keys and self.maker[transfer] != _NONE else []


class _Replay:
    """The order of emission, and the slot and the dependencies of every receive."""

    def __init__(self, work: _Work, edges: _Edges, recv_depth: int) -> None:
        self.work = work
        self.edge_of = edges.of_transfer
        self.pool_of = edges.pool_of_transfer
        self.edge_destination = [destination for _, destination in edges.ends]
        self.order: list[int] = []  # compute ids, and ~transfer for a SEND with its RECV
        self.freed_by = _windows(work, recv_depth)
        self.next_compute = work.rank_begin[:-1]  # per rank
        self.num_made = [0] * len(edges.ends)
        self.num_emitted = [0] * len(edges.ends)
        self.arrived = bytearray(2 * work.num_keys)
        self.stuck = False
        self.slots: list[int] = []  # the pool of each
        self.slot_of = [_NONE] * (2 * work.num_keys)  # per transfer
        self.slot_key: list[int] = []  # per slot, the key that it holds or held last
        self.former_key = [_NONE] * (2 * work.num_keys)  # per transfer, the key that held its slot before
        self.free: list[deque[int]] = [deque() for _ in edges.pools]  # per pool, its free slots
        self.num_open = [1 + len(work.closing_transfers(key)) for key in range(work.num_keys)]
        self.closes = [_NONE] * (2 * work.num_keys)  # per transfer, the key whose slots it helps to free
        for key in range(work.num_keys):
            for transfer in work.closing_transfers(key):
                self.closes[transfer] = key

    def run(self) -> None:
        """Emit everything."""
        num_ops = len(self.work.text) + sum(map(len, self.work.edge_transfers))
        while len(self.order) < num_ops:
            advanced = [self._advance(rank) for rank in range(len(self.next_compute))]
            if not any(advanced):
                self._force()

    def _force(self) -> None:
        self.stuck = True
        for edge in range(len(self.num_made)):
            self._transfer(edge)

    def _advance(self, rank: int) -> bool:
        compute_id = self.next_compute[rank]
        if compute_id == self.work.rank_begin[rank + 1]:
            return False
        reads = self.work.reads[compute_id]
        for transfer in reads:
            if not self.arrived[transfer] and not self.stuck:
                return False
        self.order.append(compute_id)
        self.next_compute[rank] += 1
        for key in self.work.ends[compute_id]:
            self._close(key)
        for transfer in self.work.makes[compute_id]:
            edge = self.edge_of[transfer]
            self.num_made[edge] += 1
            self._transfer(edge)
        for transfer in reads:
            self._transfer(self.edge_of[transfer])
        return True

    def _transfer(self, edge: int) -> None:
        """Emit what is ready on an edge, as far as its window allows."""
        transfers = self.work.edge_transfers[edge]
        used = self.next_compute[self.edge_destination[edge]]
        number = self.num_emitted[edge]
        while number < self.num_made[edge] and (self.freed_by[transfers[number]] < used or self.stuck):
            transfer = transfers[number]
            self.order.append(~transfer)
            self.arrived[transfer] = True
            self._take_slot(transfer)
            if self.closes[transfer] != _NONE:
                self._close(self.closes[transfer])
            number += 1
        self.num_emitted[edge] = number

    def _take_slot(self, transfer: int) -> None:
        pool = self.pool_of[transfer]
        key = transfer % self.work.num_keys
        if self.free[pool]:
            slot = self.free[pool].popleft()
            self.former_key[transfer] = self.slot_key[slot]
            self.slot_key[slot] = key
        else:
            slot = len(self.slots)
            self.slots.append(pool)
            self.slot_key.append(key)
        self.slot_of[transfer] = slot

    def _close(self, key: int) -> None:
        """Free the slots of a (stage, microbatch) when the last of its ops has been emitted."""
        self.num_open[key] -= 1
        if self.num_open[key] == 0:
            for transfer in (key, self.work.num_keys + key):
                if self.slot_of[transfer] != _NONE:
                    self.free[self.pool_of[transfer]].append(self.slot_of[transfer])


def _windows(work: _Work, recv_depth: int) -> list[int]:
    """Per transfer, the compute id after which fewer than ``recv_depth`` earlier ones of its edge are unused.

    Of the readers of the earlier transfers that is the ``recv_depth``-th last, since a rank computes in order.
    """
    freed_by = [_NONE] * (2 * work.num_keys)
    for transfers in work.edge_transfers:
        last_readers: list[int] = []
        for transfer in transfers:
            if len(last_readers) < recv_depth:
                heapq.heappush(last_readers, work.reader[transfer])
            else:
                freed_by[transfer] = last_readers[0]
                heapq.heappushpop(last_readers, work.reader[transfer])
    return freed_by


class _Rows:
    """The columns of the plan."""

    def __init__(self, work: _Work, edges: _Edges, replay: _Replay) -> None:
        self.work = work
        self.edges = edges
        self.replay = replay
        self.compute_row = [_NONE] * len(work.text)  # per compute id
        self.send_row = [_NONE] * (2 * work.num_keys)  # per transfer; its RECV is the next row
        row = 0
        for node in replay.order:
            if node >= 0:
                self.compute_row[node] = row
                row += 1
            else:
                self.send_row[~node] = row
                row += 2
        self.op_text: list[str] = []
        self.op_lane: list[int] = []
        self.op_slot: list[int] = []
        self.dep_offsets = [0]
        self.deps: list[int] = []

    def plan(self, program: Program, recv_depth: int) -> Plan:
        """Fill the columns and make the plan, which verifies it."""
        self._fill()
        return Plan(
            name=program.name,
            recv_depth=recv_depth,
            paths=program.paths,
            path_of=program.path_of,
            lanes=self.edges.lanes,
            slots=tuple(self.edges.pools[pool] for pool in self.replay.slots),
            op_text=tuple(self.op_text),
            op_lane=tuple(self.op_lane),
            op_slot=tuple(self.op_slot),
            dep_offsets=tuple(self.dep_offsets),
            deps=tuple(self.deps),
        )

    def _fill(self) -> None:
        work, lanes = self.work, self.edges.lanes
        lane_ids = {lane: lane_id for lane_id, lane in enumerate(lanes)}
        compute_lane = [
            lane_ids[Lane(rank, LaneKind.COMPUTE, _NONE)]
            for rank in range(len(work.rank_begin) - 1)
            for _ in range(work.rank_begin[rank], work.rank_begin[rank + 1])
        ]
        send_lane = [lane_ids[Lane(source, LaneKind.SEND, target)] for source, target in self.edges.ends]
        recv_lane = [lane_ids[Lane(target, LaneKind.RECV, source)] for source, target in self.edges.ends]
        for node in self.replay.order:
            if node >= 0:
                recv_rows = [self.send_row[transfer] + 1 for transfer in work.reads[node]]
                self._add(work.text[node], compute_lane[node], _NONE, recv_rows)
            else:
                transfer = ~node
                edge = self.edges.of_transfer[transfer]
                send_text, recv_text = self._texts(transfer)
                self._add(send_text, send_lane[edge], _NONE, [self.compute_row[work.maker[transfer]]])
                self._add(recv_text, recv_lane[edge], self.replay.slot_of[transfer], self._recv_deps(transfer))

    def _add(self, text: str, lane: int, slot: int, deps: list[int]) -> None:
        self.op_text.append(text)
        self.op_lane.append(lane)
        self.op_slot.append(slot)
        self.deps.extend(deps if len(deps) < 2 else sorted(deps))
        self.dep_offsets.append(len(self.deps))

    def _texts(self, transfer: int) -> tuple[str, str]:
        stage, microbatch = divmod(transfer, self.work.num_microbatches)
        if stage < self.work.num_stages:
            return f"{stage - 1}{OpKind.SEND_F.text}{microbatch}", f"{stage}{OpKind.RECV_F.text}{microbatch}"
        stage -= self.work.num_stages
        return f"{stage + 1}{OpKind.SEND_B.text}{microbatch}", f"{stage}{OpKind.RECV_B.text}{microbatch}"

    def _recv_deps(self, transfer: int) -> list[int]:
        """Find what a receive waits for: its place in the window, and the end of all that its slot held before."""
        compute_id = self.replay.freed_by[transfer]
        former_key = self.replay.former_key[transfer]
        deps: list[int] = []
        if former_key != _NONE:
            compute_id = max(compute_id, self.work.last_compute[former_key])
            deps = [self.send_row[closing] for closing in self.work.closing_transfers(former_key)]
        if compute_id != _NONE:
            deps.append(self.compute_row[compute_id])
        return deps
