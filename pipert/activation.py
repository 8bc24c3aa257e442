"""How much activation a program's ranks hold; their order alone says it, whatever the times are."""

from __future__ import annotations

from collections.abc import Sequence

from pipert.costs import Costs, StageCosts, tolerated
from pipert.errors import ConfigError
from pipert.ir import Op, Program
from pipert.ops import OpKind


def peak_activation(program: Program, costs: Costs) -> tuple[float, ...]:
    """Compute the most that each rank holds at one time, in the unit of the costs' ``act``.

    An activation is held from the start of F (of R, where it is recomputed) to the end of I, the part ``act_w`` on to
    the end of W, and ``act_kept`` to the end; a full backward is I and W at once. ``act_s`` is held from the start of S
    to the end of T.
    """
    stages = costs.for_plan(program)
    act_s = costs.vocab.act_s if costs.vocab else 0.0
    has_t = any(op.kind is OpKind.SCORE_W for ops in program.ranks for op in ops)
    recomputed = {
        (part.stage, part.microbatch)
        for ops in program.ranks
        for op in ops
        for part in op.unpacked
        if part.kind is OpKind.RECOMPUTE
    }
    peaks = []
    for ops in program.ranks:
        held = peak = 0.0
        for op in ops:
            for part in op.unpacked:
                if part.kind is not OpKind.FORWARD or (part.stage, part.microbatch) not in recomputed:
                    held += max(0.0, change(part, stages))
            held += act_s if op.kind is OpKind.SCORE else 0.0
            peak = max(peak, held)
            held += sum(min(0.0, change(part, stages)) for part in op.unpacked)
            held -= act_s if op.kind is (OpKind.SCORE_W if has_t else OpKind.SCORE) else 0.0
        peaks.append(peak)
    return tuple(peaks)


def check_memory(program: Program, costs: Costs, limit: float) -> None:
    """Refuse a program that holds more than ``limit`` on some rank.

    Raises:
        ConfigError: naming the rank and what it needs.
    """
    peaks = peak_activation(program, costs)
    rank = max(range(len(peaks)), key=peaks.__getitem__)
    if peaks[rank] > tolerated(limit):
        needs = f"{program.name} holds {peaks[rank]:g} activations on rank {rank}"
        raise ConfigError(f"{needs}, more than the memory limit of {limit:g}; the least limit is {peaks[rank]:g}")


def change(part: Op, stages: tuple[StageCosts, ...]) -> float:
    """Return by how much a compute op, but no pair, changes what its rank holds: more at its start, less at its end."""
    cost = stages[part.stage]
    if part.kind in (OpKind.FORWARD, OpKind.RECOMPUTE):
        return cost.act
    if part.kind is OpKind.INPUT_GRAD:
        return cost.act_w - cost.act
    if part.kind is OpKind.WEIGHT_GRAD:
        return cost.act_kept - cost.act_w
    return cost.act_kept - cost.act if part.kind is OpKind.BACKWARD else 0.0


class Room:
    """What every rank holds while its row is put in order, in one way of counting, and the most that it may.

    Args:
        stages: the way of counting: the activation of each stage.
        limits: per rank.
    """

    def __init__(self, stages: tuple[StageCosts, ...], limits: Sequence[float]) -> None:
        self._stages = stages
        self._limits = [tolerated(limit) for limit in limits]
        self._held = [0.0] * len(limits)

    def is_there(self, rank: int, op: Op) -> bool:
        """Whether there is room for ``op`` to start."""
        more = sum(max(0.0, change(part, self._stages)) for part in op.unpacked)
        return self._held[rank] + more <= self._limits[rank]

    def take(self, rank: int, op: Op) -> None:
        """Count what ``op`` takes, and what it gives back."""
        self._held[rank] += sum(change(part, self._stages) for part in op.unpacked)
