"""Check the passes over the vocabulary in the rows of a program."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

from pipert.errors import PlanError
from pipert.ir import Op, Program
from pipert.ops import OpKind, Scope

_FORWARD = (OpKind.EMBED, OpKind.VEMBED, OpKind.VBCAST, OpKind.SCORE, OpKind.VSTATS)
_BACKWARD = (OpKind.SCORE_W, OpKind.VGRAD, OpKind.VEMBED_GRAD, OpKind.EMBED_W)
_STARTS_BACKWARD = (OpKind.BACKWARD, OpKind.INPUT_GRAD)

Places = Mapping[Op, int]
"""Where each op stands in its row."""


def validate_vocab(program: Program) -> None:
    """Check each rank's passes over the vocabulary, if there are any; what is no such pass must be complete.

    Every rank has all of them once for every microbatch, those after ``VSTATS`` only if the program trains. They stand in
    the order that :func:`pipert.passes.vocab_parallel` gives, T before ``VGRAD`` everywhere (Algorithm 1) or after it
    everywhere (Algorithm 2). All ranks have the same order of meetings.

    Raises:
        PlanError: naming rank, op, what was expected and what was found.
    """
    rows = [[op for op in row if op.kind.scope in (Scope.SHARD, Scope.MEETING)] for row in program.ranks]
    if not any(rows):
        return
    if len(set(program.paths)) > 1:
        raise PlanError(f"{program.name}: expected one last stage, as there are passes over the vocabulary, got replicas")
    trains = any(part.kind in _STARTS_BACKWARD for row in program.ranks for op in row for part in op.unpacked)
    kinds = _FORWARD + (_BACKWARD if trains else ())
    algorithm = 0
    for rank, (row, ops) in enumerate(zip(program.ranks, rows, strict=True)):
        places = {part: index for index, op in enumerate(row) for part in op.unpacked or (op,)}
        _check_complete(program, rank, ops, kinds)
        for microbatch in range(program.num_microbatches):
            for earlier, later in _orders(program, rank, microbatch, places, trains):
                if places[earlier] > places[later]:
                    raise _fault(rank, later, f"it after {earlier}", "it before")
            if trains:
                algorithm = _check_algorithm(rank, microbatch, places, algorithm)
    _check_meetings(rows)


def _check_complete(program: Program, rank: int, ops: Sequence[Op], kinds: Sequence[OpKind]) -> None:
    found = set()
    for op in ops:
        if op.microbatch >= program.num_microbatches:
            raise _fault(rank, op, f"a microbatch below {program.num_microbatches}", str(op.microbatch))
        if op.kind.scope is Scope.SHARD and op.stage != rank:
            raise _fault(rank, op, f"it on rank {op.stage}", f"it on rank {rank}")
        if op in found:
            raise _fault(rank, op, "it once", "it twice")
        if op.kind not in kinds:
            raise _fault(rank, op, "no gradient in a program without backward", "one")
        found.add(op)
    for microbatch, kind in itertools.product(range(program.num_microbatches), kinds):
        op = Op(kind, rank if kind.scope is Scope.SHARD else -1, microbatch)
        if op not in found:
            raise _fault(rank, op, "it once, as there are passes over the vocabulary", "none")


def _orders(program: Program, rank: int, microbatch: int, places: Places, trains: bool) -> Iterator[tuple[Op, Op]]:
    """List what must stand before what in a rank's row."""

    def ours(kind: OpKind) -> Op:
        return Op(kind, rank if kind.scope is Scope.SHARD else -1, microbatch)

    def backward(stage: int) -> Op:
        return next(op for kind in _STARTS_BACKWARD if (op := Op(kind, stage, microbatch)) in places)

    last = program.num_stages - 1
    yield ours(OpKind.EMBED), ours(OpKind.VEMBED)
    yield ours(OpKind.VBCAST), ours(OpKind.SCORE)
    yield ours(OpKind.SCORE), ours(OpKind.VSTATS)
    if program.rank_of(0, microbatch) == rank:
        yield ours(OpKind.VEMBED), Op(OpKind.FORWARD, 0, microbatch)
    if program.rank_of(last, microbatch) == rank:
        yield Op(OpKind.FORWARD, last, microbatch), ours(OpKind.VBCAST)
    if trains:
        yield ours(OpKind.VSTATS), ours(OpKind.SCORE_W)
        yield ours(OpKind.VSTATS), ours(OpKind.VGRAD)
        yield ours(OpKind.VEMBED_GRAD), ours(OpKind.EMBED_W)
        if program.rank_of(last, microbatch) == rank:
            yield ours(OpKind.VGRAD), backward(last)
        if program.rank_of(0, microbatch) == rank:
            yield backward(0), ours(OpKind.VEMBED_GRAD)


def _check_algorithm(rank: int, microbatch: int, places: Places, algorithm: int) -> int:
    """Return the algorithm by which a microbatch's gradient is made, which must be that of those before."""
    weight, grad = Op(OpKind.SCORE_W, rank, microbatch), Op(OpKind.VGRAD, -1, microbatch)
    found = 1 if places[weight] < places[grad] else 2
    if algorithm not in (0, found):
        where = {1: "before", 2: "after"}
        raise _fault(rank, weight, f"it {where[algorithm]} {grad}, as elsewhere", f"it {where[found]}")
    return found


def _check_meetings(rows: Sequence[Sequence[Op]]) -> None:
    first, *others = ([op for op in row if op.kind.scope is Scope.MEETING] for row in rows)
    for rank, meetings in enumerate(others, start=1):
        for expected, found in zip(first, meetings, strict=True):
            if expected != found:
                raise _fault(rank, found, f"{expected} before it, as on rank 0", "another order of the meetings")


def _fault(rank: int, op: Op, expected: str, actual: str) -> PlanError:
    return PlanError(f"rank {rank}: {op}: expected {expected}, got {actual}", rank=rank, op=str(op))
