"""Check that a program is complete, and that every rank runs its own ops in an order that makes sense."""

from __future__ import annotations

import itertools

from pipert.errors import PlanError
from pipert.ir import Op, Program
from pipert.ops import LaneKind, OpKind, Scope
from pipert.passes.validate_vocab import validate_vocab

_NONE = -1
_OWN_LANES = (LaneKind.COMPUTE, LaneKind.COLLECTIVE)
_OF_THE_VOCABULARY = (Scope.SHARD, Scope.MEETING)
_ORDER = (OpKind.FORWARD, OpKind.RECOMPUTE, OpKind.BACKWARD, OpKind.INPUT_GRAD, OpKind.WEIGHT_GRAD)


def validate(program: Program) -> None:
    """Check each rank's row of ``program`` by itself; waits between ranks are the plan verifier's business.

    Every (stage, microbatch) has its F once and exactly one of B or (I and W), all on the stage's rank, in the order
    F, R (if any), B or F, R, I, W. A program without any backward has its F's and nothing else. Passes over the
    vocabulary are complete and in order, too. Where a row may hold the collectives of sharded parameters is the
    verifier's business, as are the ops of post-validation.

    Raises:
        PlanError: naming rank, op, what was expected and what was found.
    """
    _check_sizes(program)
    cells = _Cells(program)
    for rank, ops in enumerate(program.ranks):
        cells.add_row(rank, ops)
    cells.check()
    validate_vocab(program)


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
    holders = {rank for path in program.paths for rank in path}
    for rank in range(program.num_ranks):
        if rank not in holders:
            raise PlanError(f"rank {rank}: expected at least one stage, got none", rank=rank)


class _Cells:
    """The places of the ops of every (stage, microbatch) in their rank's row, the parts of a pair one by one."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._num_stages, self._num_microbatches = program.num_stages, program.num_microbatches
        num_cells = self._num_stages * self._num_microbatches
        self._places = {kind.text: [_NONE] * num_cells for kind in _ORDER}  # per kind; row s*num_microbatches + mb

    def add_row(self, rank: int, ops: tuple[Op, ...]) -> None:
        paths, path_of, places = self._program.paths, self._program.path_of, self._places
        num_stages, num_microbatches = self._num_stages, self._num_microbatches
        position = 0
        for whole in ops:
            for op in whole.parts or (whole,):
                kind, stage, microbatch = op.kind, op.stage, op.microbatch
                if kind.scope is not Scope.MICROBATCH or kind.lane is not LaneKind.COMPUTE:
                    if kind.lane not in _OWN_LANES:
                        found = f"an op of a {kind.lane.value} lane"
                        raise _fault(rank, op, "no transfers, which lowering adds", found)
                    if kind.scope is Scope.RANK and stage != rank:
                        raise _fault(rank, op, f"it on rank {stage}", f"it on rank {rank}")
                    continue
                if stage >= num_stages:
                    raise _fault(rank, op, f"a stage below {num_stages}", str(stage))
                if microbatch >= num_microbatches:
                    raise _fault(rank, op, f"a microbatch below {num_microbatches}", str(microbatch))
                holder = paths[path_of[microbatch]][stage]
                if holder != rank:
                    raise _fault(rank, op, f"it on rank {holder}", f"it on rank {rank}")
                column = places[kind.text]
                cell = stage * num_microbatches + microbatch
                if column[cell] != _NONE:
                    raise _fault(rank, op, "it once", f"it at positions {column[cell]} and {position}")
                column[cell] = position
                position += 1

    def check(self) -> None:
        """Check that every (stage, microbatch) is complete and in order."""
        rows = zip(*(self._places[kind.text] for kind in _ORDER), strict=True)
        has_backward = any(max(self._places[kind.text]) != _NONE for kind in _ORDER[1:])
        for cell, (forward, again, backward, input_grad, weight_grad) in enumerate(rows):
            if input_grad == _NONE:
                grad, complete = backward, weight_grad == _NONE != backward
            else:
                grad, complete = input_grad, backward == _NONE and input_grad < weight_grad
            in_order = forward < grad and (again == _NONE or forward < again < grad)
            if forward == _NONE or (has_backward and not (complete and in_order)):
                self._explain(cell, has_backward)

    def _explain(self, cell: int, has_backward: bool) -> None:
        stage, microbatch = divmod(cell, self._num_microbatches)
        rank = self._program.rank_of(stage, microbatch)
        ops = [Op(kind, stage, microbatch) for kind in _ORDER]
        forward, _, backward, input_grad, weight_grad = ops
        place = {op: self._places[op.kind.text][cell] for op in ops}
        if place[forward] == _NONE:
            raise _fault(rank, forward, "it once", "none")
        halves = [half for half in (input_grad, weight_grad) if place[half] != _NONE]
        if place[backward] != _NONE and halves:
            raise _fault(rank, halves[0], f"either {backward} or {input_grad} and {weight_grad}", "both")
        if has_backward and place[backward] == _NONE and not halves:
            raise _fault(rank, backward, f"either {backward} or {input_grad} and {weight_grad}", "neither")
        if len(halves) == 1:
            missing = weight_grad if halves == [input_grad] else input_grad
            raise _fault(rank, missing, f"it once, as there is {halves[0]}", "none")
        for earlier, later in itertools.pairwise(op for op in ops if place[op] != _NONE):
            if place[earlier] > place[later]:
                raise _fault(rank, later, f"it after {earlier}", "it before")


def _fault(rank: int, op: Op, expected: str, actual: str) -> PlanError:
    return PlanError(f"rank {rank}: {op}: expected {expected}, got {actual}", rank=rank, op=str(op))
