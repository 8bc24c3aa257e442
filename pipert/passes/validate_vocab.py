"""Check the passes over the vocabulary in the rows of a program."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

from pipert.errors import PlanError
from pipert.ir import Op, Program
from pipert.ops import OpKind, Scope

_GROUPS = (
    (OpKind.EMBED, OpKind.VEMBED, OpKind.VEMBED_GRAD, OpKind.EMBED_W),
    (OpKind.VBCAST, OpKind.SCORE, OpKind.VSTATS, OpKind.SCORE_W, OpKind.VGRAD),
)
"""The input embedding, and the output layer."""
_OF_BACKWARD = (OpKind.SCORE_W, OpKind.VGRAD, OpKind.VEMBED_GRAD, OpKind.EMBED_W)
_OWN_ORDER = (
    (OpKind.EMBED, OpKind.VEMBED),
    (OpKind.VBCAST, OpKind.SCORE),
    (OpKind.SCORE, OpKind.VSTATS),
    (OpKind.VSTATS, OpKind.SCORE_W),
    (OpKind.VSTATS, OpKind.VGRAD),
    (OpKind.VEMBED_GRAD, OpKind.EMBED_W),
)
_STARTS_BACKWARD = (OpKind.BACKWARD, OpKind.INPUT_GRAD)

Places = Mapping[Op, int]
"""Where each op stands in its row."""


def validate_vocab(program: Program) -> None:
    """Check each rank's passes over the vocabulary, if there are any; what is no such pass must be complete.

    Of the output layer's, and of the input embedding's, every rank has either none, or all once for every microbatch
    (those of the gradient if the program trains), in the order that :func:`pipert.passes.vocab_parallel` gives them. T
    stands before ``VGRAD`` everywhere (Algorithm 1), or after it everywhere (Algorithm 2). All ranks have the same
    order of meetings.

    Raises:
        PlanError: naming rank, op, what was expected and what was found.
    """
    rows = [[op for op in row if op.kind.scope in (Scope.SHARD, Scope.MEETING)] for row in program.ranks]
    if not any(rows):
        return
    if len(set(program.paths)) > 1:
        raise PlanError(
            f"{program.name}: expected one last stage, as there are passes over the vocabulary, got replicas"
        )
    trains = any(part.kind in _STARTS_BACKWARD for row in program.ranks for op in row for part in op.unpacked)
    here = {op.kind for row in rows for op in row}
    kinds = [kind for group in _GROUPS if here & set(group) for kind in group if trains or kind not in _OF_BACKWARD]
    algorithm = 0
    for rank, (row, ops) in enumerate(zip(program.ranks, rows, strict=True)):
        places = {part: index for index, op in enumerate(row) for part in op.unpacked or (op,)}
        _check_complete(program, rank, ops, kinds)
        for microbatch in range(program.num_microbatches):
            for earlier, later in _orders(program, rank, microbatch):
                if earlier in places and later in places and places[earlier] > places[later]:
                    raise _fault(rank, later, f"it after {earlier}", "it before")
            if OpKind.SCORE_W in kinds:
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


def _orders(program: Program, rank: int, microbatch: int) -> Iterator[tuple[Op, Op]]:
    """List what stands before what in a rank's row, as far as it stands there."""

    def ours(kind: OpKind) -> Op:
        return Op(kind, rank if kind.scope is Scope.SHARD else -1, microbatch)

    for earlier, later in _OWN_ORDER:
        yield ours(earlier), ours(later)
    last = program.num_stages - 1
    if program.rank_of(0, microbatch) == rank:
        yield ours(OpKind.VEMBED), Op(OpKind.FORWARD, 0, microbatch)
        yield from ((Op(kind, 0, microbatch), ours(OpKind.VEMBED_GRAD)) for kind in _STARTS_BACKWARD)
    if program.rank_of(last, microbatch) == rank:
        yield Op(OpKind.FORWARD, last, microbatch), ours(OpKind.VBCAST)
        yield from ((ours(OpKind.VGRAD), Op(kind, last, microbatch)) for kind in _STARTS_BACKWARD)


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
