"""Orders from equal slots: every microbatch goes down its path and back without waiting once.

A forward or a backward of a stage takes one slot. With S stages, a microbatch that enters in slot e has its forward of
stage s in slot e + s, its backward in slot e + 2S - 1 - s. On zigzag paths (down the ranks, up, down, ...) these are,
for each rank, slots p apart of the one parity and slots p apart of the other. So p microbatches (half of them on the
mirrored path, where there is one) that enter two slots apart fill every slot of every rank once the pipeline is full.
They are a *unit*; the next unit enters 2S slots later, right where the first begins to leave holes: what Li & Hoefler
call direct concatenation (arXiv 2107.06925, section 3.5).
"""

from __future__ import annotations

from collections.abc import Sequence

from pipert.ir import Op, Program
from pipert.ops import OpKind
from pipert.schedules.interleaved import even_groups


def in_equal_slots(paths: Sequence[tuple[int, ...]], num_microbatches: int) -> Program:
    """Order the ops of each rank by their slots.

    Where p does not divide m, the units are as even as can be and none (unless m < p) is smaller than p: by simulation
    that is the best of the ways to cut them. Two ops of a larger unit may fall into one slot; the earlier microbatch
    then goes first. The order of the slots is one that all ranks agree with, so it cannot deadlock.

    Args:
        paths: one zigzag path, or one and its mirror image; microbatches of a unit take them in turn. A path that no
            microbatch takes is left out.
        num_microbatches: m.
    """
    num_ranks, num_stages = max(paths[0]) + 1, len(paths[0])
    # Both directions of an odd number of ranks meet on the middle one, in the same slot: one starts a slot later.
    offset = num_ranks % 2
    path_of: list[int] = []
    slots: list[list[tuple[int, int, Op]]] = [[] for _ in range(num_ranks)]
    for number, unit in enumerate(even_groups(num_microbatches, max(1, num_microbatches // num_ranks))):
        for position, microbatch in enumerate(unit):
            turn, path = divmod(position, len(paths))
            path_of.append(path)
            enter = 2 * num_stages * number + 2 * turn + path * offset
            for stage, rank in enumerate(paths[path]):
                leave = enter + 2 * num_stages - 1
                slots[rank].append((enter + stage, microbatch, Op(OpKind.FORWARD, stage, microbatch)))
                slots[rank].append((leave - stage, microbatch, Op(OpKind.BACKWARD, stage, microbatch)))
    ranks = tuple(tuple(op for *_, op in sorted(row, key=lambda slot: slot[:2])) for row in slots)
    return Program("", tuple(paths[: max(path_of) + 1]), tuple(path_of), ranks)
