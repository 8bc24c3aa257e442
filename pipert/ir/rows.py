"""A program from bare rows of ops: where the stages stand follows from the rows in which their ops stand."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence, Set

from pipert.errors import PlanError
from pipert.ir.op import Op
from pipert.ir.program import Program


def from_rows(name: str, rows: Sequence[Sequence[Op]], where: Callable[[int, int], str]) -> Program:
    """Make the program whose rank r computes ``rows[r]``; a (stage, microbatch) belongs to the rank of its ops.

    The program is not validated here: ``pipert.passes.validate`` does that, and ``pipert.compile`` calls it.

    Args:
        name: of the program.
        rows: the compute ops (and collectives) of each rank, in order.
        where: names the place of an op, given its rank and its index in the row, for messages.

    Raises:
        PlanError: an empty row, a (stage, microbatch) in two rows, or one that stands in no row although it must.
    """
    holders: dict[tuple[int, int], tuple[int, str]] = {}
    for rank, ops in enumerate(rows):
        if not ops:
            raise PlanError(f"row {rank + 1} holds no op: there is one row per rank", rank=rank)
        for index, op in enumerate(ops):
            for part in op.unpacked if op.kind.has_microbatch else ():
                key = (part.stage, part.microbatch)
                holder, first = holders.setdefault(key, (rank, f"{op} at {where(rank, index)}"))
                if holder != rank:
                    expected = f"expected stage {part.stage}, microbatch {part.microbatch} on rank {holder}, as {first}"
                    raise PlanError(f"{where(rank, index)}: {op}: {expected}, got rank {rank}", rank=rank, op=str(op))
    if not holders:
        raise PlanError("there is no op in it")
    paths, path_of = _paths({key: rank for key, (rank, _) in holders.items()})
    return Program(name, paths, path_of, tuple(map(tuple, rows)))


def _paths(rank_of: Mapping[tuple[int, int], int]) -> tuple[tuple[tuple[int, ...], ...], tuple[int, ...]]:
    """Find the paths of a program, in the order of the first microbatches that take them, and each microbatch's path.

    Args:
        rank_of: the rank in whose row the ops of a (stage, microbatch) stand.
    """
    stages = _all_from_0("stage", {stage for stage, _ in rank_of})
    paths: list[dict[int, int]] = []
    path_of = []
    for microbatch in _all_from_0("microbatch", {microbatch for _, microbatch in rank_of}):
        mine = {stage: rank_of[stage, microbatch] for stage in stages if (stage, microbatch) in rank_of}
        fitting = (number for number, path in enumerate(paths) if all(path.get(s, r) == r for s, r in mine.items()))
        number = next(fitting, len(paths))
        if number == len(paths):
            paths.append({})
        paths[number].update(mine)
        path_of.append(number)
    for number, path in enumerate(paths):
        lacking = next((stage for stage in stages if stage not in path), None)
        if lacking is not None:
            raise PlanError(f"microbatch {path_of.index(number)} passes stage {lacking} in no row")
    return tuple(tuple(path[stage] for stage in stages) for path in paths), tuple(path_of)


def _all_from_0(what: str, numbers: Set[int]) -> range:
    missing = next(number for number in itertools.count() if number not in numbers)
    if missing < max(numbers):
        raise PlanError(f"{what} {missing} stands in no row, but {what} {max(numbers)} does")
    return range(missing)
