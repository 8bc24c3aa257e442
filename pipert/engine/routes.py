"""Where the tensors of each stage come from and go to, read off the plan once."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipert.ops import LaneKind, OpKind, Scope
from pipert.replicas import Replica, replicas

if TYPE_CHECKING:
    from pipert.ir import Op
    from pipert.plan import Plan

_TRANSFERS = (OpKind.RECV_F, OpKind.SEND_F, OpKind.RECV_B, OpKind.SEND_B)
_LAST_OPS = (OpKind.WEIGHT_GRAD, OpKind.BACKWARD)


@dataclass(frozen=True, slots=True)
class Route:
    """The transfers of one replica of a stage: op ids by microbatch, -1 where nothing is transferred.

    Nothing is where the neighbour is on the same rank or missing, and where the microbatch takes another replica.

    Attributes:
        rank: the rank.
        stage: the stage.
        microbatches: those that come this way.
        recv_inputs: its RECV_F ops.
        send_outputs: its SEND_F ops.
        recv_grads: its RECV_B ops, which bring the gradients of its outputs.
        send_grads: its SEND_B ops, which take away the gradients of its inputs.
    """

    rank: int
    stage: int
    microbatches: tuple[int, ...]
    recv_inputs: tuple[int, ...]
    send_outputs: tuple[int, ...]
    recv_grads: tuple[int, ...]
    send_grads: tuple[int, ...]


def routes(plan: Plan, ranks: Collection[int]) -> tuple[Route, ...]:
    """Read the route of everything that ``ranks`` hold off the plan."""
    ids: dict[tuple[OpKind, Replica], list[int]] = {
        (kind, replica): [-1] * plan.num_microbatches for kind in _TRANSFERS for replica in replicas(plan, ranks)
    }
    for op_id, op in enumerate(plan.ops):
        if op.kind in _TRANSFERS and plan.rank_of(op_id) in ranks:
            ids[op.kind, (plan.rank_of(op_id), op.stage)][op.microbatch] = op_id
    return tuple(
        Route(rank, stage, _microbatches(plan, rank, stage), *(tuple(ids[kind, (rank, stage)]) for kind in _TRANSFERS))
        for rank, stage in replicas(plan, ranks)
    )


def compute_ops(plan: Plan, ranks: Collection[int]) -> list[tuple[int, Op]]:
    """List the compute and collective ops of ``ranks`` in the global order, each with its rank."""
    return [
        (plan.lanes[lane].rank, op)
        for op, lane in zip(plan.ops, plan.op_lane, strict=True)
        if op.kind.lane in (LaneKind.COMPUTE, LaneKind.COLLECTIVE) and plan.lanes[lane].rank in ranks
    ]


def rank_transfers(plan: Plan, rank: int) -> dict[OpKind, int]:
    """Return the ids of the transfers that are for ``rank`` as a whole, by kind."""
    return {
        op.kind: op_id
        for op_id, op in enumerate(plan.ops)
        if op.kind.scope is Scope.RANK and op.kind.lane is not LaneKind.COMPUTE and op.stage == rank
    }


def has_post_validation(plan: Plan) -> bool:
    """Whether the plan steps the optimizer itself."""
    return any(op.kind is OpKind.OPT for op in plan.ops)


def has_backward(plan: Plan) -> bool:
    """Whether the plan trains; a forward-only plan does not."""
    return any(part.kind in _LAST_OPS for op in plan.ops for part in op.unpacked)


def recomputed_stages(plan: Plan) -> frozenset[int]:
    """Return the stages for which the plan has R ops."""
    return frozenset(part.stage for op in plan.ops for part in op.unpacked if part.kind is OpKind.RECOMPUTE)


def _microbatches(plan: Plan, rank: int, stage: int) -> tuple[int, ...]:
    return tuple(mb for mb in range(plan.num_microbatches) if plan.rank_of_stage(stage, mb) == rank)
