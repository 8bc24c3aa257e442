"""Check that a program is complete, and that every rank runs its own ops in an order that makes sense."""

from __future__ import annotations

import itertools

from pipert.errors import PlanError
from pipert.ir import Op, Program
from pipert.ops import LaneKind, OpKind

Places = dict[Op, tuple[int, int]]
"""Where each op stands: (rank, position in the rank's order); the parts of a pair one by one."""


def validate(program: Program) -> None:
    """Check each rank's row of ``program`` by itself; waits between ranks are the plan verifier's business.

    Every (stage, microbatch) has its F once and exactly one of B or (I and W), all on the stage's rank, in the order
    F, R (if any), B or F, R, I, W. A program without any backward has its F's and nothing else.

    Raises:
        PlanError: naming rank, op, what was expected and what was found.
    """
    _check_sizes(program)
    places = _places(program)
    has_backward = any(op.kind is not OpKind.FORWARD for op in places)
    for microbatch, path in enumerate(program.path_of):
        for stage, rank in enumerate(program.paths[path]):
            _check_cell(places, rank, stage, microbatch, has_backward)


def _check_sizes(program: Program) -> None:
    if program.num_ranks < 1 or program.num_microbatches < 1:
        sizes = f"{program.num_ranks} ranks and {program.num_microbatches} microbatches"
        raise PlanError(f"{program.name}: expected at least one rank and one microbatch, got {sizes}")
    for number, path in enumerate(program.paths):
        if len(path) != program.num_stages:
            expected = f"expected the {program.num_stages} stages of path 0"
            raise PlanError(f"path {number}: {expected}, got {len(path)}: replicas do not match")
        for stage, rank in enumerate(path):
            if not 0 <= rank < program.num_ranks:
                raise PlanError(f"stage {stage}: expected a rank below {program.num_ranks}, got {rank}", rank=rank)
    for microbatch, number in enumerate(program.path_of):
        if not 0 <= number < len(program.paths):
            raise PlanError(f"microbatch {microbatch}: expected a path below {len(program.paths)}, got {number}")
    for rank in range(program.num_ranks):
        if not program.chunks(rank):
            raise PlanError(f"rank {rank}: expected at least one stage, got none", rank=rank)


def _places(program: Program) -> Places:
    places: Places = {}
    for rank, ops in enumerate(program.ranks):
        parts = [part for op in ops for part in op.unpacked]
        for position, op in enumerate(parts):
            if op.kind.lane is not LaneKind.COMPUTE:
                raise _fault(rank, op, "compute ops only", f"an op of a {op.kind.lane.value} lane")
            if op.stage >= program.num_stages:
                raise _fault(rank, op, f"a stage below {program.num_stages}", str(op.stage))
            if op.microbatch >= program.num_microbatches:
                raise _fault(rank, op, f"a microbatch below {program.num_microbatches}", str(op.microbatch))
            holder = program.rank_of(op.stage, op.microbatch)
            if holder != rank:
                raise _fault(rank, op, f"it on rank {holder}", f"it on rank {rank}")
            if op in places:
                raise _fault(rank, op, "it once", f"it at positions {places[op][1]} and {position}")
            places[op] = (rank, position)
    return places


def _check_cell(places: Places, rank: int, stage: int, microbatch: int, has_backward: bool) -> None:
    forward, again, backward, input_grad, weight_grad = (
        Op(kind, stage, microbatch)
        for kind in (
            OpKind.FORWARD,
            OpKind.RECOMPUTE,
            OpKind.BACKWARD,
            OpKind.INPUT_GRAD,
            OpKind.WEIGHT_GRAD,
        )
    )
    if forward not in places:
        raise _fault(rank, forward, "it once", "none")
    if not has_backward:
        return
    halves = [half for half in (input_grad, weight_grad) if half in places]
    if backward in places and halves:
        raise _fault(rank, halves[0], f"either {backward} or {input_grad} and {weight_grad}", "both")
    if backward not in places and not halves:
        raise _fault(rank, backward, f"either {backward} or {input_grad} and {weight_grad}", "neither")
    if len(halves) == 1:
        missing = weight_grad if halves == [input_grad] else input_grad
        raise _fault(rank, missing, f"it once, as there is {halves[0]}", "none")
    order = [op for op in (forward, again, backward, input_grad, weight_grad) if op in places]
    for earlier, later in itertools.pairwise(order):
        if places[earlier][1] > places[later][1]:
            raise _fault(rank, later, f"it after {earlier}", "it before")


def _fault(rank: int, op: Op, expected: str, actual: str) -> PlanError:
    return PlanError(f"rank {rank}: {op}: expected {expected}, got {actual}", rank=rank, op=str(op))
