"""Where the tensors of each stage come from and go to, read off the plan once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipert.ops import LaneKind, OpKind

if TYPE_CHECKING:
    from pipert.ir import Op
    from pipert.plan import Plan

_TRANSFERS = (OpKind.RECV_F, OpKind.SEND_F, OpKind.RECV_B, OpKind.SEND_B)
_LAST_OPS = (OpKind.WEIGHT_GRAD, OpKind.BACKWARD)


@dataclass(frozen=True, slots=True)
class Route:
    """The transfers of one stage: op ids by microbatch, empty where the neighbour is on the same rank or missing.

    Attributes:
        stage: the stage.
        rank: the rank that holds it.
        recv_inputs: its RECV_F ops.
        send_outputs: its SEND_F ops.
        recv_grads: its RECV_B ops, which bring the gradients of its outputs.
        send_grads: its SEND_B ops, which take away the gradients of its inputs.
    """

    stage: int
    rank: int
    recv_inputs: tuple[int, ...]
    send_outputs: tuple[int, ...]
    recv_grads: tuple[int, ...]
    send_grads: tuple[int, ...]


def routes(plan: Plan) -> tuple[Route, ...]:
    """Read the route of every stage off the plan."""
    ids: dict[tuple[OpKind, int], list[int]] = {
        (kind, stage): [-1] * plan.num_microbatches for kind in _TRANSFERS for stage in range(plan.num_stages)
    }
    used: set[tuple[OpKind, int]] = set()
    for op_id, op in enumerate(plan.ops):
        if op.kind.lane is not LaneKind.COMPUTE:
            ids[op.kind, op.stage][op.microbatch] = op_id
            used.add((op.kind, op.stage))
    return tuple(
        Route(stage, rank, *(tuple(ids[kind, stage]) if (kind, stage) in used else () for kind in _TRANSFERS))
        for stage, rank in enumerate(plan.only_path)
    )


def compute_ops(plan: Plan, ranks: frozenset[int]) -> list[Op]:
    """List the compute ops of ``ranks`` in the global order."""
    return [
        op
        for op, lane in zip(plan.ops, plan.op_lane, strict=True)
        if op.kind.lane is LaneKind.COMPUTE and plan.lanes[lane].rank in ranks
    ]


def has_backward(plan: Plan) -> bool:
    """Whether the plan trains; a forward-only plan does not."""
    return any(part.kind in _LAST_OPS for op in plan.ops for part in op.unpacked)


def recomputed_stages(plan: Plan) -> frozenset[int]:
    """Return the stages for which the plan has R ops."""
    return frozenset(part.stage for op in plan.ops for part in op.unpacked if part.kind is OpKind.RECOMPUTE)
