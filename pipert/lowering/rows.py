"""The columns of the plan."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from pipert.ir import Program
from pipert.lowering.edges import NONE, Edges
from pipert.lowering.slots import Slots
from pipert.lowering.work import Work
from pipert.ops import LaneKind, OpKind
from pipert.plan import Lane, Plan


class Rows:
    """An order with its windows and slots, as the rows of a plan."""

    def __init__(self, work: Work, edges: Edges, order: list[int], freed_by: list[int], slots: Slots) -> None:
        self._work = work
        self._edges = edges
        self._order = order
        self._freed_by = freed_by
        self._slots = slots
        self._item_row = [NONE] * len(work.text)
        self._send_row = [NONE] * len(edges.of_transfer)  # per transfer; its RECV is the next row
        row = 0
        for node in order:
            if node >= 0:
                self._item_row[node] = row
                row += 1
            else:
                self._send_row[~node] = row
                row += 2
        self._op_text: list[str] = []
        self._op_lane: list[int] = []
        self._op_slot: list[int] = []
        self._dep_offsets = [0]
        self._deps: list[int] = []

    def plan(self, program: Program, recv_depth: int) -> Plan:
        """Fill the columns and make the plan, which verifies it."""
        self._fill()
        return Plan(
            name=program.name,
            recv_depth=recv_depth,
            paths=program.paths,
            path_of=program.path_of,
            lanes=self._edges.lanes,
            slots=tuple(self._edges.pools[pool] for pool in self._slots.pool),
            op_text=tuple(self._op_text),
            op_lane=tuple(self._op_lane),
            op_slot=tuple(self._op_slot),
            dep_offsets=tuple(self._dep_offsets),
            deps=tuple(self._deps),
        )

    def _fill(self) -> None:
        work, ends = self._work, self._edges.ends
        lane_ids = {lane: lane_id for lane_id, lane in enumerate(self._edges.lanes)}
        item_lane = self._item_lanes(lane_ids)
        send_lane = [lane_ids[Lane(source, LaneKind.SEND, target)] for source, target in ends]
        recv_lane = [lane_ids[Lane(target, LaneKind.RECV, source)] for source, target in ends]
        for node in self._order:
            if node >= 0:
                deps = [self._send_row[transfer] + 1 for transfer in work.reads[node]]
                if node in work.waits:
                    deps += [self._item_row[item] for item in work.waits[node]]
                self._add(work.text[node], item_lane[node], NONE, deps)
            else:
                transfer = ~node
                edge = self._edges.of_transfer[transfer]
                send_text, recv_text = transfer_texts(work, transfer)
                self._add(send_text, send_lane[edge], NONE, (self._item_row[work.maker[transfer]],))
                self._add(recv_text, recv_lane[edge], self._slots.of_transfer[transfer], self._recv_deps(transfer))

    def _item_lanes(self, lane_ids: dict[Lane, int]) -> list[int]:
        lanes: list[int] = []
        for rank, (begin, end) in enumerate(itertools.pairwise(self._work.rank_begin)):
            lanes += [lane_ids[Lane(rank, LaneKind.COMPUTE, NONE)]] * (end - begin)
            for item in self._work.collectives.intersection(range(begin, end)):
                lanes[item] = lane_ids[Lane(rank, LaneKind.COLLECTIVE, NONE)]
        return lanes

    def _add(self, text: str, lane: int, slot: int, deps: Sequence[int]) -> None:
        self._op_text.append(text)
        self._op_lane.append(lane)
        self._op_slot.append(slot)
        self._deps.extend(deps if len(deps) < 2 else sorted(deps))
        self._dep_offsets.append(len(self._deps))

    def _recv_deps(self, transfer: int) -> list[int]:
        """Find what a receive waits for: its place in the window, and the end of all that its slot held before."""
        item = self._freed_by[transfer]
        former_key = self._slots.former_key[transfer]
        deps: list[int] = []
        if former_key != NONE:
            item = max(item, self._work.last_compute[former_key])
            deps = [self._send_row[closing] for closing in self._work.closing_transfers(former_key)]
        if item != NONE:
            deps.append(self._item_row[item])
        return deps


def transfer_texts(work: Work, transfer: int) -> tuple[str, str]:
    """Return the texts of a transfer's SEND and RECV."""
    if transfer >= 2 * work.num_keys:
        kind, rank = divmod(transfer - 2 * work.num_keys, work.num_ranks)
        if kind == 0:
            return f"{rank - 1}{OpKind.SEND_NORM.text}", f"{rank}{OpKind.RECV_NORM.text}"
        return f"{rank + 1}{OpKind.SEND_TOTAL.text}", f"{rank}{OpKind.RECV_TOTAL.text}"
    stage, microbatch = divmod(transfer, work.num_microbatches)
    if stage < work.num_stages:
        return f"{stage - 1}{OpKind.SEND_F.text}{microbatch}", f"{stage}{OpKind.RECV_F.text}{microbatch}"
    stage -= work.num_stages
    return f"{stage + 1}{OpKind.SEND_B.text}{microbatch}", f"{stage}{OpKind.RECV_B.text}{microbatch}"
