"""The plan: a program lowered to every op that every rank runs, in one global order, verified."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from functools import cached_property
from os import PathLike
from typing import Any

from pipert import _core
from pipert.ir import Op
from pipert.ir.paths import OnPaths, Paths
from pipert.ops import LaneKind


@dataclass(frozen=True, slots=True)
class Lane:
    """An in-order queue of ops on one rank.

    Attributes:
        rank: where it runs.
        kind: what it runs.
        peer: the destination of a send lane, the source of a receive lane, -1 of other lanes.
    """

    rank: int
    kind: LaneKind
    peer: int


@dataclass(frozen=True, slots=True)
class Slot:
    """Memory for one received message at a time, of one edge: its sender writes into it.

    Attributes:
        rank: whose memory it is.
        stage: the stage that reads it.
        payload: ``"input"`` of the stage (RECV_F), ``"grad"`` of its output (RECV_B); ``"norm"`` or ``"total"`` of the
            gradients, where ``stage`` is the rank again.
    """

    rank: int
    stage: int
    payload: str


@dataclass(frozen=True, repr=False)
class Plan(OnPaths):
    """Every op of one step on every rank, with lanes, dependencies and slots. Made by :func:`pipert.compile`.

    A row is an op: its number is the op's id and its place in the global order. A transfer is two adjacent rows,
    SEND and then RECV. A lane runs its ops in row order. Making a plan verifies it.

    Attributes:
        name: the program's name.
        recv_depth: how many receives of one edge may be posted before they are used.
        paths: per path, the rank of each stage; see :class:`pipert.Program`.
        path_of: per microbatch, the path that it takes.
        lanes: every lane; an op refers to its own by index.
        slots: every slot; a RECV refers to its own by index.
        op_text: per op, its text (``"2F0"``).
        op_lane: per op, its lane.
        op_slot: per op, the slot that a RECV fills; -1 for other ops.
        dep_offsets: the dependencies of op ``i`` are ``deps[dep_offsets[i]:dep_offsets[i + 1]]``.
        deps: ids of ops on other lanes of the same rank that must have ended.
        native: the same plan in the core, for the simulator and the engine.

    Raises:
        PlanError: the plan is malformed, incomplete, or would deadlock; the message shows the wait cycle.
    """

    name: str
    recv_depth: int
    paths: Paths
    path_of: tuple[int, ...]
    lanes: tuple[Lane, ...]
    slots: tuple[Slot, ...]
    op_text: tuple[str, ...]
    op_lane: tuple[int, ...]
    op_slot: tuple[int, ...]
    dep_offsets: tuple[int, ...]
    deps: tuple[int, ...]
    native: _core.Plan = field(init=False, compare=False)
    verified: InitVar[_core.Plan | None] = None

    def __post_init__(self, verified: _core.Plan | None) -> None:
        object.__setattr__(self, "native", verified or _core.Plan(canonical_json(self.to_dict())))

    def __repr__(self) -> str:
        sizes = f"num_ranks={self.num_ranks}, num_microbatches={self.num_microbatches}, num_ops={self.num_ops}"
        return f"Plan({self.name!r}, {sizes})"

    @property
    def num_ranks(self) -> int:
        """How many ranks the plan is for."""
        return max(map(max, self.paths)) + 1

    @property
    def num_ops(self) -> int:
        """How many ops there are, over all ranks and lanes."""
        return len(self.op_text)

    @cached_property
    def ops(self) -> tuple[Op, ...]:
        """Every op, parsed."""
        return tuple(map(Op.parse, self.op_text))

    def rank_of(self, op_id: int) -> int:
        """Return the rank that runs an op."""
        return self.lanes[self.op_lane[op_id]].rank

    def rank_of_stage(self, stage: int, microbatch: int) -> int:
        """Return the rank that works on a (stage, microbatch)."""
        return self.paths[self.path_of[microbatch]][stage]

    def compute_ops(self, rank: int) -> tuple[int, ...]:
        """List the ids of the compute ops of ``rank``, in order."""
        lane = self.lanes.index(Lane(rank, LaneKind.COMPUTE, -1))
        return tuple(op_id for op_id, op_lane in enumerate(self.op_lane) if op_lane == lane)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain lists, the ``plan`` object of a plan file."""
        return {
            "name": self.name,
            "recv_depth": self.recv_depth,
            "paths": self.paths,
            "path_of": self.path_of,
            "lanes": {
                "rank": [lane.rank for lane in self.lanes],
                "kind": [lane.kind.value for lane in self.lanes],
                "peer": [lane.peer for lane in self.lanes],
            },
            "slots": {
                "rank": [slot.rank for slot in self.slots],
                "stage": [slot.stage for slot in self.slots],
                "payload": [slot.payload for slot in self.slots],
            },
            "ops": {
                "text": self.op_text,
                "lane": self.op_lane,
                "slot": self.op_slot,
                "dep_offsets": self.dep_offsets,
                "deps": self.deps,
            },
        }

    @classmethod
    def from_dict(cls, plan: Mapping[str, Any]) -> Plan:
        """Make the plan that :meth:`to_dict` describes, after the core has verified all of it.

        Raises:
            PlanError: as the class says; also for keys and types other than those of :meth:`to_dict`.
        """
        native = _core.Plan(canonical_json(plan))
        lanes, slots, ops = plan["lanes"], plan["slots"], plan["ops"]
        return cls(
            name=plan["name"],
            recv_depth=plan["recv_depth"],
            paths=tuple(map(tuple, plan["paths"])),
            path_of=tuple(plan["path_of"]),
            lanes=tuple(map(Lane, lanes["rank"], map(LaneKind, lanes["kind"]), lanes["peer"])),
            slots=tuple(map(Slot, slots["rank"], slots["stage"], slots["payload"])),
            op_text=tuple(ops["text"]),
            op_lane=tuple(ops["lane"]),
            op_slot=tuple(ops["slot"]),
            dep_offsets=tuple(ops["dep_offsets"]),
            deps=tuple(ops["deps"]),
            verified=native,
        )

    def save(self, path: str | PathLike[str]) -> None:
        """Write the plan to a file; see :mod:`pipert.planfile`."""
        from pipert.planfile import save

        save(self, path)

    @staticmethod
    def load(path: str | PathLike[str]) -> Plan:
        """Read and verify a plan that :meth:`save` wrote.

        Raises:
            ConfigError: the file cannot be read.
            PlanError: it is no plan file, of another version, changed, or holds no valid plan.
        """
        from pipert.planfile import load

        return load(path)


def canonical_json(plan: Mapping[str, Any]) -> str:
    """Return the one text of a plan object whose bytes are hashed and which the core parses."""
    return json.dumps(plan, separators=(",", ":"), ensure_ascii=True)
